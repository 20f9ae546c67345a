"""Packaging as nbdev lays it out: every fact is read from settings.ini."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
settings = ConfigParser(delimiters=["="])
settings.read(here / "settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]
names = ("dask", "tensorboard", "voila", "body", "xlsx")
extras = {n: cfg[f"{n}_requirements"].split() for n in names}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    keywords=cfg["keywords"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Framework :: Jupyter",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)),
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    project_urls={
        "Documentation": cfg["doc_host"] + cfg["doc_baseurl"],
        "Changelog": cfg["git_url"] + f"/blob/{cfg['branch']}/CHANGELOG.md",
        "Issues": cfg["git_url"] + "/issues",
    },
    # what ships from data/ becomes the package hmr_nb.data; golden numbers stay behind
    packages=[*find_packages(include=["hmr_nb", "hmr_nb.*"]), "hmr_nb.data"],
    package_dir={"hmr_nb.data": "data"},
    package_data={
        "hmr_nb": [name for name in cfg["by_hand"].split() if not name.endswith(".py")],
        "hmr_nb.data": [
            *("*.npz", "*.h5", "*.json", "*.toml", "*.csv"),
            *("samples/*", "samples/*/*"),
        ],
    },
    python_requires=f">={cfg['min_python']},<3.14",
    install_requires=cfg["requirements"].split(),
    extras_require={
        **extras,
        "dev": [*cfg["dev_requirements"].split(), *sum(extras.values(), [])],
    },
    entry_points={"console_scripts": cfg["console_scripts"].split("\n")},
    zip_safe=False,
)
