"""What pyproject.toml cannot say: every package found, and the migrations of the top-level folder packed among them."""

from setuptools import find_packages, setup

MIGRATIONS = {"app.database.migrations": "alembic", "app.database.migrations.versions": "alembic/versions"}

setup(
    packages=[*find_packages(include=["app*", "producer*", "workers*"]), *MIGRATIONS],
    package_dir=MIGRATIONS,
    package_data={
        "app": ["py.typed", "prompt_templates/*.txt", "small_model/*", "results/page/*"],
        "app.database.migrations": ["script.py.mako"],
        "producer": ["py.typed"],
        "workers": ["py.typed", "engine/runner/cpu/*.c"],
    },
    include_package_data=False,
)
