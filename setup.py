"Package metadata that pip needs at build time, read from settings.ini; the version stands in sesemi_fastai/__init__.py"
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

cfg = ConfigParser()
cfg.read('settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
status = {'3': '3 - Alpha', '4': '4 - Beta', '5': '5 - Production/Stable'}[cfg['status']]

setup(
    version = re.search(r"__version__ = ['\"](.+?)['\"]", Path('sesemi_fastai/__init__.py').read_text()).group(1),
    packages = find_packages(include=['sesemi_fastai', 'sesemi_fastai.*']),
    package_data = {"sesemi_fastai": ["*.csv"]},
    install_requires = cfg['requirements'].split(),
    extras_require = {k.removesuffix('_requirements'): v.split() for k,v in cfg.items() if k.endswith('_requirements')},
    classifiers = [f'Development Status :: {status}', f"Intended Audience :: {cfg['audience']}",
                   f"Natural Language :: {cfg['language']}", 'Programming Language :: Python :: 3'],
    entry_points = {'console_scripts': cfg['console_scripts'].split(), 'nbdev': ['sesemi_fastai=sesemi_fastai._modidx:d']},
)
