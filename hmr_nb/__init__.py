"""Human shape and pose from one image, keypoints of your own, and what a model's error
on another dataset comes from.

The names below are loaded when they are first used: `import hmr_nb` alone loads no
TensorFlow. Everything else lies in the parts: `basics`, `body`, `keypoints`, `model`,
`records`, `making`, `training`, `inference`, `study`, `shell`.
"""

__version__ = "0.3.0"

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
