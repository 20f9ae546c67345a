from .basics.keypoints import KeypointSet, keypoint_set
from .basics.metrics import auc, mpjpe, pa_mpjpe, pck
from .body.body_data import BodyData
from .body.body_files import load_body, save_body
from .body.explorer import BodyExplorer
from .body.open_body import open_body
from .body.pickles import UnsafePickleError
from .body.regressor_files import load_rows, save_rows
from .body.smpl import SMPL
from .inference.fit import fit_body
from .inference.infer import infer
from .inference.landmarks import find_people
from .inference.photo_tool import PhotoTool
from .keypoints.joint_regressor import fit_marks, fit_regressor
from .keypoints.picker import KeypointPicker
from .model.hmr import HMR
from .model.published import load_hmr2, load_hmr_tf1
from .model.weights import load_hmr, small_hmr
from .records.photos import load_photo
from .records.reader import examples
from .study.evaluate import evaluate
from .training.experiment import Experiment
from .training.run import fit

__version__: str

__all__ = [
    "HMR",
    "SMPL",
    "BodyData",
    "BodyExplorer",
    "Experiment",
    "KeypointPicker",
    "KeypointSet",
    "PhotoTool",
    "UnsafePickleError",
    "auc",
    "evaluate",
    "examples",
    "find_people",
    "fit",
    "fit_body",
    "fit_marks",
    "fit_regressor",
    "infer",
    "keypoint_set",
    "load_body",
    "load_hmr",
    "load_hmr2",
    "load_hmr_tf1",
    "load_photo",
    "load_rows",
    "mpjpe",
    "open_body",
    "pa_mpjpe",
    "pck",
    "save_body",
    "save_rows",
    "small_hmr",
]
