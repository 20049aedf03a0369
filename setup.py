"""Build the package from settings.ini, the only place that names version and requirements.

Description and links stand in pyproject.toml, where nbdev reads them.
"""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
STATUS = {"1": "1 - Planning", "2": "2 - Pre-Alpha", "3": "3 - Alpha", "4": "4 - Beta", "5": "5 - Production/Stable"}

settings = ConfigParser(delimiters=["="], interpolation=None)
settings.read(HERE / "settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]
extras = {key.removesuffix("_requirements"): cfg[key].split() for key in cfg if key.endswith("_requirements")}


def files(pattern):
    return sorted(str(p.relative_to(HERE)) for p in HERE.glob(pattern))


extras["all"] = sorted({need for name, needs in extras.items() if name != "dev" for need in needs})

setup(
    version=cfg["version"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    license_expression="Apache-2.0",
    # The features are CC-BY-4.0: who is to be named travels with every copy.
    license_files=["LICENSE", "NOTICE", "ATTRIBUTION.md"],
    keywords=cfg["keywords"].split(),
    classifiers=[
        f"Development Status :: {STATUS[cfg['status']]}",
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=f">={cfg['min_python']}",
    package_dir={"": "."},  # so that an editable install puts this folder on the path: see tests/test_platforms.py
    packages=find_packages(include=[cfg["lib_path"], f"{cfg['lib_path']}.*"]),
    package_data={cfg["lib_path"]: ["assets/*", "assets/*/*", "methods/*.toml", "py.typed"]},
    # The papermill templates and the workflow travel with an installed package, so that `dualppo reproduce` runs
    # without a clone.
    data_files=[
        ("share/dualppo/runs", files("nbs/runs/*.ipynb")),
        ("share/dualppo/workflow", files("workflow/Snakefile")),
        *(
            (f"share/dualppo/workflow/profiles/{name}", files(f"workflow/profiles/{name}/config.yaml"))
            for name in ("local", "slurm")
        ),
    ],
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split()},
)
