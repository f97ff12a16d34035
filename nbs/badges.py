"""Give each tutorial a badge that opens it on Colab, and a cell that installs the package there: `make badges`, once settings.ini has
git_url = https://github.com/OWNER/NAME"""
import configparser, json, sys
from pathlib import Path

root = Path(__file__).parent.parent

def address(settings=root/'settings.ini'):
    "OWNER/NAME from settings.ini"
    cfg = configparser.ConfigParser()
    cfg.read(settings)
    url = cfg['DEFAULT'].get('git_url', '').rstrip('/').removesuffix('.git')
    if not url.startswith('https://github.com/') or url.count('/') != 4:
        sys.exit("settings.ini needs git_url = https://github.com/OWNER/NAME: Colab opens notebooks from there")
    return url.removeprefix('https://github.com/')

def cells(repo, name):
    "The two cells that come first"
    colab = 'https://colab.research.google.com'
    badge = f'[![Open in Colab]({colab}/assets/colab-badge.svg)]({colab}/github/{repo}/blob/main/nbs/tutorials/{name})'
    install = f"import sys\nif 'google.colab' in sys.modules:\n    %pip install -q 'sesemi_fastai @ git+https://github.com/{repo}'"
    return [dict(cell_type='markdown', id='colab-badge', metadata={}, source=[badge]),
            dict(cell_type='code', id='colab-install', metadata={}, source=install.splitlines(True), execution_count=None, outputs=[])]

def add_badge(fname, repo):
    "Put the cells at the top of a notebook, in place of those that are there"
    nb = json.loads(fname.read_text(encoding='utf-8'))
    nb['cells'] = cells(repo, fname.name) + [c for c in nb['cells'] if not c.get('id', '').startswith('colab-')]
    fname.write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True)+'\n', encoding='utf-8')

if __name__ == '__main__':
    repo = address()
    for o in sorted((root/'nbs/tutorials').glob('*.ipynb')): add_badge(o, repo)
