"The HTML page in a real browser, as wide as a phone and as wide as a desk"
import json, re, shutil, subprocess
from pathlib import Path
import pytest
from PIL import Image
from sesemi_fastai.mini import make_mini
from test_cli import run, small

chromium = shutil.which('chromium') or shutil.which('chromium-browser')
needs_chromium = pytest.mark.skipif(not chromium, reason="needs Debian's package chromium")

@pytest.fixture(scope='module')
def report(tmp_path_factory):
    "Two runs on the drawn set, and the page about them"
    folder = tmp_path_factory.mktemp('report')
    mini = make_mini(folder/'mini', 120, 20)
    for name,unlabeled in dict(plain='none', sesemi='train').items():
        assert run('sesemi-train', '--dataset', 'mini', '--path', mini, '--epochs', 2, '--unlabeled', unlabeled, '--out', folder/'runs'/name, '--no-bar', *small).returncode == 0
    res = run('sesemi-report', folder/'runs', '--path', mini)
    assert res.returncode == 0, res.stderr
    assert res.stdout.split() == [str(folder/'runs/report.html')]
    return folder/'runs/report.html'

def test_it_holds_all_its_parts(report):
    html = report.read_text()
    for part in ('Accuracy on the validation images','Published by others','50% wrong labels','Which class was taken for which','labels found least likely','Training labels that look most wrong','A rotated batch'): assert part in html, part
    assert html.count('data:image/png') == 1+2+2+2+1
    assert not re.findall(r'(?:src|href)="(?!data:)', html) and '<script' not in html

def browse(page, width, tmp_path, *args):
    flags = '--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --hide-scrollbars --enable-logging=stderr --v=0'.split()
    return subprocess.run([chromium, *flags, f'--user-data-dir={tmp_path}/profile', f'--window-size={width},1200', *args, f'file://{page}'], capture_output=True, text=True, timeout=120)

@needs_chromium
@pytest.mark.parametrize('width', [500,1280])
def test_it_renders_without_errors(report, tmp_path, width):
    "Every picture has a size, nothing is wider than the window, and the console stays empty"
    probe = '''<script>addEventListener('load', () => document.title = JSON.stringify({wide: document.documentElement.scrollWidth, window: innerWidth,
        pictures: [...document.images].map(o => o.naturalWidth), shown: [...document.images].map(o => o.clientWidth), rows: document.querySelectorAll('tr').length}))</script>'''
    page = tmp_path/'page.html'
    page.write_text(report.read_text().replace('</body>', probe+'</body>'))
    res = browse(page, width, tmp_path, '--dump-dom')
    o = json.loads(re.search(r'<title>(.+?)</title>', res.stdout).group(1))
    assert o['wide'] <= o['window'] and abs(o['window']-width) < 20
    assert len(o['pictures']) == 8 and min(o['pictures']) > 200 and max(o['shown']) <= o['window'] and o['rows'] > 10
    assert 'CONSOLE' not in res.stderr, res.stderr
    browse(report, width, tmp_path, f'--screenshot={tmp_path}/s.png')
    im = Image.open(tmp_path/'s.png').convert('L')
    assert im.width == width and im.getextrema()[0] < 60 and im.getextrema()[1] > 240

def test_mistakes(tmp_path, report):
    for args,says in {(tmp_path,):'no finished record', (report.parent,'--noise','5'):'has noise 5', (report.parent,'--path',tmp_path):'table of labels'}.items():
        res = run('sesemi-report', *args)
        assert res.returncode == 2 and len(res.stderr.strip().splitlines()) == 1 and (says in res.stderr or 'is not there' in res.stderr), res.stderr
