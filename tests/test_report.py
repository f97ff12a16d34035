"The HTML page in a real browser, as wide as a phone and as wide as a desk"
import re, shutil
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
        trained = run('sesemi-train', '--dataset', 'mini', '--path', mini, '--epochs', 2, '--unlabeled', unlabeled, '--out', folder/'runs'/name,
                      '--no-bar', *small)
        assert trained.returncode == 0
    res = run('sesemi-report', folder/'runs', '--path', mini)
    assert res.returncode == 0, res.stderr
    assert res.stdout.split() == [str(folder/'runs/report.html')]
    assert re.search(r'the last epoch \(the lowest of a class: [0-9.]+ %, of \w+\), [0-9.]+ % after', trained.stderr), trained.stderr
    assert 'with --path' in run('sesemi-report', folder/'runs', '--page', folder/'bare.html').stdout
    return folder/'runs/report.html'

def test_it_holds_all_its_parts(report):
    html = report.read_text()
    for part in ('Accuracy on the validation images','50% wrong labels','Which class was taken for which','labels found least likely',
                 'Training labels that look most wrong','A rotated batch',
                 'Accuracy of each class','<th class="figures">training labels</th>'): assert part in html, part
    assert 'Published by others' not in html # of drawn images nobody has
    assert (html.count('data:image/png'),html.count('data:image/webp')) == (1,2+2+2+1)
    assert not re.findall(r'(?:src|href)="(?!data:)', html) and '<script' not in html

@needs_chromium
@pytest.mark.parametrize('width', [390,1280], ids=['phone','desktop'])
def test_it_renders_without_errors(report, tmp_path, width):
    "Every picture has a size, nothing is wider than the window, and the console stays empty"
    sync_api,told = pytest.importorskip('playwright.sync_api'),[]
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        page = browser.new_page(viewport=dict(width=width, height=900), is_mobile=width < 500)
        page.on('console', lambda m: told.append(m.text))
        page.on('pageerror', lambda e: told.append(str(e)))
        page.goto(f'file://{report}', timeout=120_000)
        o = page.evaluate("""() => ({wide: document.documentElement.scrollWidth, window: innerWidth, pictures: [...document.images].map(o => o.naturalWidth),
            shown: [...document.images].map(o => o.clientWidth), rows: document.querySelectorAll('tr').length})""")
        page.screenshot(path=tmp_path/'s.png')
        browser.close()
    assert o['wide'] <= o['window'] == width and not told
    assert len(o['pictures']) == 8 and min(o['pictures']) > 200 and max(o['shown']) <= max(width, 704) and o['rows'] == 3+11 # wide pictures scroll, as tables do
    im = Image.open(tmp_path/'s.png').convert('L')
    assert im.width == width and im.getextrema()[0] < 60 and im.getextrema()[1] > 240

def test_published_figures_stand_beside_their_data_only():
    from sesemi_fastai.table import published_beside
    def of(dataset, noise): return published_beside([dict(config=dict(dataset=dataset, noise=noise))])
    assert set(of('nette', 50).dataset) == {'imagenette'} and set(of('nette', 50).pct_noise) == {50} and set(of('wang', 0).dataset) == {'imagewang'}
    assert not len(of('own', 0)) and not len(of('mini', 50))

def test_own_table_and_few_images(tmp_path):
    "The folder around the table that the run was trained from is enough, and so are fewer images than the picture has room for"
    import pandas as pd
    mini = make_mini(tmp_path/'flat', 10, 10)
    table = pd.read_csv(mini/'noisy_mini.csv')
    table.assign(label=['a','b']*10)[['path','label','is_valid']].groupby('is_valid').head(6).to_csv(mini/'my.csv', index=False)
    assert run('sesemi-train', '--dataset', 'own', '--path', mini/'my.csv', '--epochs', 1, '--unlabeled', 'train', '--out', tmp_path/'runs/a',
               '--no-bar', *small, '--bs', 4).returncode == 0
    res = run('sesemi-report', tmp_path/'runs', '--path', mini)
    assert res.returncode == 0 and 'A rotated batch' in (tmp_path/'runs/report.html').read_text(), res.stderr

def test_mistakes(tmp_path, report):
    for args,says in {(tmp_path,):'no finished record', (report.parent,'--noise','5'):'has noise 5',
                      (report.parent,'--path',tmp_path):'table of labels'}.items():
        res = run('sesemi-report', *args)
        assert res.returncode == 2 and len(res.stderr.strip().splitlines()) == 1 and (says in res.stderr or 'is not there' in res.stderr), res.stderr
