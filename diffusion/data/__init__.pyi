from .dataset import ImageDataset as ImageDataset
from .dataset import open_dataset as open_dataset
from .images import DataError as DataError
from .images import read_image as read_image
from .loader import batches as batches
