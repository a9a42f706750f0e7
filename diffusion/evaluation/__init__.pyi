from .config import EvaluationConfig as EvaluationConfig
from .features import FeatureExtractor as FeatureExtractor
from .features import open_features as open_features
from .metrics import Measurement as Measurement
from .metrics import Scores as Scores
from .metrics import score as score
from .scoring import evaluate as evaluate
from .scoring import frechet_scorer as frechet_scorer
