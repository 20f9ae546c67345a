"""The other side of `make bench`: smplx and smplfitter, run by their own Python, one
json line asked and one answered.

Needs nothing of hmr_nb: bodies come as the pickle that `save_body` writes, which these
packages open as their own.
"""

import io
import json
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import smplfitter.pt
import smplx
import torch


def bodies(folder: Path) -> dict:
    """name -> a function of pose (b, 24, 3) and betas (b, 10) that gives vertices (b,
    V, 3)."""
    # the name that smplfitter looks for
    file = folder / "basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl"
    with redirect_stdout(io.StringIO()):  # smplx tells that there are ten betas
        theirs = smplx.SMPL(
            str(file),
            create_body_pose=False,
            create_betas=False,
            create_global_orient=False,
            create_transl=False,
        )
    # smplfitter's sign for "no such template here"
    np.save(folder / "kid_template.npy", np.zeros(1))
    fitter = smplfitter.pt.BodyModel("smpl", "neutral", model_root=str(folder))
    return {
        "smplx": lambda pose, betas: (
            theirs(
                betas=betas,
                global_orient=pose[:, :1].flatten(1),
                body_pose=pose[:, 1:].flatten(1),
            ).vertices
        ),
        "smplfitter": lambda pose, betas: fitter(pose_rotvecs=pose, shape_betas=betas)[
            "vertices"
        ],
    }


def main(folder: Path) -> None:
    "Answer questions {name, inputs, calls, save?} until the input ends."
    torch.set_grad_enabled(False)
    known = bodies(folder)
    print(
        json.dumps(
            {
                "versions": {
                    "smplx": smplx.__version__ if hasattr(smplx, "__version__") else "",
                    "torch": torch.__version__,
                }
            }
        ),
        flush=True,
    )
    for line in sys.stdin:
        ask = json.loads(line)
        given = np.load(ask["inputs"])
        pose, betas = torch.tensor(given["pose"]), torch.tensor(given["betas"])
        call, times = known[ask["name"]], []
        for _ in range(ask["calls"]):
            start = time.perf_counter()
            out = call(pose, betas)
            times.append(time.perf_counter() - start)
        if "save" in ask:
            np.save(ask["save"], out.numpy())
        print(json.dumps({"times": times}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
