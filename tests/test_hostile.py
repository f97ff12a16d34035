"Bad images, bad tables, and inputs that nobody thought of: a clear line each time, never a hang"
import io, json, os, string, sys, time
from pathlib import Path
import numpy as np, pandas as pd, pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from sesemi_fastai.core import InputError
from sesemi_fastai.data import leaves_folder
from sesemi_fastai.own import own_dls, own_table
from sesemi_fastai.noise import add_label_noise
from sesemi_fastai.scan import image_fault, scan_images
from sesemi_fastai.stream import UnlabeledStream, unlabeled_items
from hostile import as_bytes, bad_tables, good_images, good_tables, make_folder, picture, rng, table, write_bad_images
from test_cli import last, run, small

# -- images
@pytest.mark.cell('Bad images', 'truncated, zero-byte, text, 16-bit, turned by EXIF, animated, decompression bomb, pipes, loops of links: '
                                'named with the reason')
def test_every_bad_image_is_named(tmp_path):
    faults = write_bad_images(tmp_path/'bad')
    for name,(kind,word) in faults.items():
        found = image_fault(tmp_path/'bad'/name)
        assert found and found[0] == kind and word in found[1].lower().replace('decompressionbomb', 'decompression bomb'), f'{name}: {found}'
    table = scan_images([tmp_path/'bad'/o for o in faults])
    assert table.path.map(os.path.basename).tolist() == list(faults)

@pytest.mark.cell('Bad images', 'greyscale, CMYK, palette, transparent, one-bit, progressive: no fault')
def test_unusual_images_are_no_fault(tmp_path):
    for name,content in good_images.items():
        (tmp_path/name).write_bytes(content)
        assert image_fault(tmp_path/name) is None, name

@pytest.mark.cell('Bad images', 'unreadable permissions')
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_no_permission(tmp_path):
    f = tmp_path/'secret.png'
    picture.save(f)
    f.chmod(0)
    tmp_path.chmod(0o755)
    r,w = os.pipe()
    if not (pid := os.fork()): # root may read everything, so somebody else looks
        try:
            os.chdir(tmp_path) # by a relative path: the folders above are closed to somebody else, too
            if os.geteuid() == 0: os.setuid(65534)
            os.write(w, str(image_fault(f.name)).encode())
        finally: os._exit(0)
    os.waitpid(pid, 0)
    os.close(w)
    assert 'no permission' in os.read(r, 1000).decode()

def photos(folder, n=20):
    for i in range(2*n):
        f = folder/'ab'[i%2]/f'{i}.jpg'
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40,40,3), dtype=np.uint8)).save(f)
    return folder

def spoiled(folder):
    "Three bad ones and a turned one among the training images"
    whole = (folder/'a/0.jpg').read_bytes()
    (folder/'a/0.jpg').write_bytes(whole[:-300])
    (folder/'a/2.jpg').write_bytes(b'')
    (folder/'b/1.jpg').write_text('text')
    exif = Image.Exif(); exif[0x112] = 6
    Image.open(folder/'b/3.jpg').save(folder/'b/3.jpg', exif=exif)
    return folder

@pytest.mark.parametrize('source', [None,'valid'])
def test_turned_ones_are_not_rotated_from_python_either(tmp_path, source):
    path = spoiled(photos(tmp_path/'p'))
    dls = own_dls(path, 32, bs=8, num_workers=0, bad_images='skip')
    labelled,rotated = ({os.path.basename(str(o)) for o in items}
        for items in (dls.table.path[[True]*len(dls.table) if source else ~dls.table.is_valid],UnlabeledStream(dls, source).dl.dataset.items.path))
    assert rotated == labelled - {'3.jpg'} and len(rotated) > 20
    assert '3.jpg' in set(dls.table.path.map(os.path.basename))

def test_turned_ones_among_chosen_items_are_not_rotated(tmp_path):
    "A table, a list of files or a folder: what the builder has found to be turned stays out"
    path = spoiled(photos(tmp_path/'p'))
    dls = own_dls(path, 32, bs=8, num_workers=0, bad_images='skip')
    items = dls.train_ds.items
    files = [Path(dls.path)/o for o in items.path]
    assert '3.jpg' in {f.name for f in files} and dls.not_rotated
    for source in (items, files, [str(o) for o in files]):
        assert {Path(getattr(o, 'path', o)).name for o in _each(unlabeled_items(dls, source))} == {f.name for f in files}-{'3.jpg'}

def _each(items): return items.path.tolist() if hasattr(items, 'columns') else items

own = ['--dataset','own','--epochs',1,*small]

@pytest.mark.cell('Bad images', 'training stops before the first step, or skips and counts them; turned ones are kept from the rotation task')
def test_training_stops_or_skips(tmp_path):
    path = spoiled(photos(tmp_path/'p'))
    res = run('sesemi-train', '--path', path, *own)
    assert res.returncode == 2 and len(res.stderr.strip().splitlines()) == 1
    assert str(path) in res.stderr and '(and 2 more)' in res.stderr and '--bad-images skip' in res.stderr
    res = run('sesemi-train', '--path', path, '--bad-images', 'skip', *own)
    assert res.returncode == 0, res.stderr
    assert res.stderr.count('.jpg: ') == 4
    o = last(res)
    assert o['image_faults'] == dict(bad=3, turned=1)
    assert o['data']['train_images']+o['data']['valid_images'] == 37 and o['unlabeled_images'] in (o['data']['train_images'],o['data']['train_images']-1)
    assert run('sesemi-train', '--path', path, '--bad-images', 'ignore', *own).returncode == 2

@pytest.mark.cell('Bad images', 'a file that goes bad while training runs is named')
def test_a_file_that_changes_during_training(tmp_path, monkeypatch):
    path = photos(tmp_path/'p')
    import sesemi_fastai.experiment as exp
    new_record = exp.new_record
    def then_spoil(*args): record = new_record(*args); spoiled(path); return record
    monkeypatch.setattr(exp, 'new_record', then_spoil)
    res = run('sesemi-train', '--path', path, '--unlabeled', 'none', *own)
    assert res.returncode == 1 and 'has changed since training began' in res.stderr and len(res.stderr.strip().splitlines()) == 1

def test_scan_command(tmp_path):
    res = run('sesemi-data', 'scan', '--path', spoiled(photos(tmp_path/'p')))
    assert res.returncode == 0 and res.stdout.splitlines()[-1] == '40 images: 3 bad, 1 turned' and len(res.stdout.splitlines()) == 5
    assert run('sesemi-data', 'scan', '--path', tmp_path/'p'/'a'/'4.jpg').returncode == 2
    assert run('sesemi-data', 'scan', '--path', photos(tmp_path/'q', 2)).stdout.strip() == '4 images: no fault'

@pytest.mark.cell('Bad images', 'folders that link to each other in a loop: each is read once')
def test_loops_of_folders(tmp_path):
    path = photos(tmp_path/'p', 2)
    for o in ('one','two','a/three'): (path/o).symlink_to(path)
    assert run('sesemi-data', 'scan', '--path', path).stdout.strip() == '4 images: no fault'

def test_a_scan_leaves_warnings_alone(tmp_path):
    import warnings
    files = list(photos(tmp_path/'p', 40).rglob('*.jpg'))
    for _ in range(3): scan_images(files, n_workers=4)
    with pytest.warns(UserWarning, match='hello'): warnings.warn('hello')

def test_a_fault_is_counted_once(tmp_path):
    path = photos(tmp_path/'p')
    (path/'a/0.jpg').write_bytes(b'')
    res = run('sesemi-train', '--path', path, '--unlabeled', path/'a', '--bad-images', 'skip', *own)
    assert res.returncode == 0 and last(res)['image_faults'] == {'bad':1} and res.stderr.count('empty file') == 1 and last(res)['unlabeled_images'] == 19

# -- tables
@pytest.fixture(scope='module')
def folder(tmp_path_factory): return make_folder(tmp_path_factory.mktemp('tables')/'images')

def put(folder, content):
    (folder/'t.csv').write_bytes(as_bytes(content))
    return folder/'t.csv'

@pytest.mark.cell('Bad tables', 'missing columns, duplicates, paths that leave the folder, classes of one split, empty splits, foreign '
                                'tables, other encodings: one line and exit status 2')
@pytest.mark.parametrize('name', bad_tables)
def test_bad_tables(folder, name):
    content,words = bad_tables[name]
    res = run('sesemi-train', '--path', put(folder, content), *own)
    assert res.returncode == 2 and words in res.stderr and len(res.stderr.strip().splitlines()) == 1 and 'Traceback' not in res.stderr, res.stderr

@pytest.mark.cell('Bad tables', 'Windows line ends, byte order mark, quotes, numbers as labels: read as they are meant')
@pytest.mark.parametrize('name', good_tables)
def test_good_tables(folder, name):
    df,_ = own_table(put(folder, good_tables[name]))
    assert len(df) == 28 and df.is_valid.sum() == 4 and df.label.nunique() == 2

@pytest.mark.cell('Bad tables', '1,000,000 rows: an answer within seconds')
@pytest.mark.parametrize('change,words', [(None,'and at least 999 more are not there'), ('twice','stands twice'), ('out','leads out')])
def test_a_million_rows(folder, change, words):
    df = pd.DataFrame(dict(path=[f'train/a/{i}.png' for i in range(1_000_000)], label='a', is_valid=False))
    if change: df.loc[999_999,'path'] = dict(twice='train/a/0.png', out='../x.png')[change]
    df.to_csv(folder/'big.csv', index=False)
    began = time.time()
    with pytest.raises(InputError, match=words): own_table(folder/'big.csv')
    assert time.time()-began < 20
    (folder/'big.csv').unlink()

# -- properties
settings.register_profile('ci', max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.register_profile('long', max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'ci'))

@pytest.mark.cell('Property tests', 'label noise: exact counts, known classes, the seed decides')
@given(st.lists(st.integers(0, 6), min_size=1, max_size=200), st.floats(0, 1), st.booleans(), st.integers(0, 2**32-1))
def test_noise_properties(labels, noise, include_true, seed):
    classes = list(range(7))
    y = add_label_noise(labels, noise, include_true, classes=classes, seed=seed)
    wrong = (y != np.array(labels)).sum()
    assert len(y) == len(labels) and set(y.tolist()) <= set(classes)
    assert wrong <= round(noise*len(labels)) if include_true else wrong == round(noise*len(labels))
    assert (y == add_label_noise(labels, noise, include_true, classes=classes, seed=seed)).all()

@st.composite
def matrices(draw):
    k = draw(st.integers(2, 5))
    m = np.array(draw(st.lists(st.lists(st.integers(0, 9), min_size=k, max_size=k), min_size=k, max_size=k)), float) + np.eye(k)
    return m/m.sum(1, keepdims=True)

@given(matrices(), st.integers(0, 80), st.integers(0, 9))
def test_transition_properties(m, n, seed):
    k = len(m)
    labels = np.arange(k).repeat(n+1)
    y = add_label_noise(labels, transition=m, classes=list(range(k)), seed=seed)
    for i,row in enumerate(m):
        counts = np.bincount(y[labels == i], minlength=k)
        assert counts.sum() == n+1 and (abs(counts-row*(n+1)) < 1).all() and (counts[row == 0] == 0).all()

parts = st.sampled_from(['..','.','a','b.png','','...','..a',' ','~','C:','\\','..\\','/','\0','é'])
@pytest.mark.cell('Property tests', 'path guard: what it lets through stays in the folder')
@given(st.lists(parts, max_size=6), st.sampled_from(['/','\\','//']))
def test_path_guard(bits, sep):
    p = sep.join(bits)
    if leaves_folder(pd.Series([p])).iloc[0]: return
    for text in (p, p.replace('\\', '/')):
        full = os.path.normpath(os.path.join('/data/set', text))
        assert full.startswith('/data/set/'), p

@given(st.lists(st.sampled_from(['a','b','c d','..x','x.png','é']), min_size=1, max_size=5))
def test_path_guard_lets_plain_paths_through(bits): assert not leaves_folder(pd.Series(['/'.join(bits)])).iloc[0]

cells = st.one_of(st.text(max_size=8), st.sampled_from(['path','label','is_valid','True','False','train/a/0.png','train/b/1.png','valid/a/0.png',
    'a','b','','"','\r','../x','nan','1e999','-0']))
lines = st.lists(st.lists(cells, min_size=1, max_size=4).map(','.join), max_size=8).map('\n'.join)
spoilt = st.builds(lambda t,i,b: t[:i % len(t)]+b+t[i % len(t):], st.just(table()), st.integers(0, 2000), st.text(max_size=5)).map(str.encode)
fuzz = st.one_of(st.binary(max_size=300), lines.map(lambda s: s.encode('utf-8', 'surrogatepass')),
                 lines.map(lambda s: ('path,label,is_valid\n'+s).encode('utf-8', 'surrogatepass')), spoilt)

def read_or_refuse(folder, content):
    "The only two ways in which reading a table may end"
    (folder/'fuzz.csv').write_bytes(content)
    try: df,_ = own_table(folder/'fuzz.csv')
    except InputError as e:
        assert str(e)
        return 'refused'
    assert len(df) and df.label.notna().all() and df.is_valid.dtype == bool and all((folder/p).is_file() for p in df.path)
    return 'read'

@pytest.mark.cell('Property tests', 'fuzzing the CSV reader: bounded in CI, longer with HYPOTHESIS_PROFILE=long')
@given(content=fuzz)
def test_csv_fuzz(folder, content): read_or_refuse(folder, content)
