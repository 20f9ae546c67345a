"""Packaging as nbdev lays it out: every fact is read from settings.ini."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
settings = ConfigParser(delimiters=["="])
settings.read(here / "settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]

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
    # what ships from data/ becomes the package hmr_nb.data; golden numbers stay in the repository
    packages=[*find_packages(include=["hmr_nb", "hmr_nb.*"]), "hmr_nb.data"],
    package_dir={"hmr_nb.data": "data"},
    package_data={"hmr_nb.data": ["*.npz", "*.h5", "*.json", "*.toml", "*.csv", "samples/*", "samples/*/*"]},
    python_requires=f">={cfg['min_python']},<3.13",
    install_requires=cfg["requirements"].split(),
    extras_require={"dask": cfg["dask_requirements"].split(), "dev": cfg["dev_requirements"].split()},
    entry_points={"console_scripts": cfg["console_scripts"].split("\n")},
    zip_safe=False,
)
