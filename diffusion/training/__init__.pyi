from .checkpoint import Checkpoints as Checkpoints
from .estimate import memory as memory
from .loop import Trainer as Trainer
from .loop import TrainingState as TrainingState
from .loop import train as train
from .ranks import Ranks as Ranks
