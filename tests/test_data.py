"Published facts of the data, and a user's mistakes in tables and folders"
import os, shutil
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image
from sesemi_fastai.core import InputError
from sesemi_fastai.data import (imagewang_dls, imagewang_table, noisy_imagenette_dls, noisy_imagewoof_dls, noisy_table,
                                show_noisy_batch)
from sesemi_fastai.own import own_dls, own_table
from sesemi_fastai.mini import make_mini, objects
from sesemi_fastai.noise import add_label_noise
from sesemi_fastai.stream import unlabeled_dl, sees_validation, unlabeled_items
from sesemi_fastai.tree import linkers, write_noisy_tree

real = Path(os.environ.get('IMAGENETTE', 'no such folder'))
needs_real = pytest.mark.skipif(not (real/'noisy_imagenette.csv').is_file(), reason='set IMAGENETTE to a folder with Imagenette and its noisy_imagenette.csv')

def put(path, n=1):
    path.mkdir(parents=True, exist_ok=True)
    for i in range(n): Image.fromarray(np.full((24,24,3), 9*i, np.uint8)).save(path/f'{path.name}_{path.parent.name}_{i}.png')

@pytest.fixture(scope='module')
def small(tmp_path_factory): return make_mini(tmp_path_factory.mktemp('d')/'mini', 100, 20)

@pytest.fixture
def table(small): return pd.read_csv(small/'noisy_mini.csv')

def with_table(small, tmp_path, df):
    "The small data set with another table"
    for split in ('train','val'): shutil.copytree(small/split, tmp_path/split)
    df.to_csv(tmp_path/'noisy_mini.csv', index=False)
    return tmp_path

# -- the published data
@needs_real
@pytest.mark.parametrize('noise,wrong', [(0,0), (1,1.00), (5,5.01), (25,25.01), (50,50.01)])
def test_published_noise(noise, wrong):
    df = noisy_table(real, noise)
    train = df[~df.is_valid]
    assert (len(train),len(df)) == (9469,13394) and df.label.nunique() == 10
    assert 100*(train.label != train.true).mean() == pytest.approx(wrong, abs=.005)
    assert (df[df.is_valid].label == df[df.is_valid].true).all()

@needs_real
@pytest.mark.parametrize('size', [64,128,256])
def test_batches_of_photographs(size):
    dls = noisy_imagenette_dls(50, size, real, bs=4, num_workers=0)
    x,y = dls.one_batch()
    assert x.shape == (4,3,size,size) and len(dls.vocab) == 10 and 'tench' in dls.vocab
    assert (len(dls.train_ds),len(dls.valid_ds)) == (9469,3925)
    assert abs(x.mean()) < 1.5 and .3 < x.std() < 2

@needs_real
def test_tree_of_photographs_has_every_image_once(tmp_path):
    tree = write_noisy_tree(real, 50, tmp_path, 'symlink')
    df = noisy_table(real, 50, named=False)
    found = {o.name: o.parent.name for o in tree.rglob('*.JPEG')}
    assert found == {Path(p).name: l for p,l in zip(df.path, df.label)}
    assert len(list((tree/'val').rglob('*.JPEG'))) == 3925

# -- builders
def test_noisy_builders_read_the_given_split_and_labels(small, table):
    for build in (noisy_imagenette_dls, noisy_imagewoof_dls):
        dls = build(25, 32, small, bs=8, num_workers=0)
        assert (len(dls.train_ds),len(dls.valid_ds)) == (100,20)
        given = [dls.vocab[y] for _,y in dls.train_ds]
        assert given == table[~table.is_valid].noisy_labels_25.tolist()
        assert sum(a != b for a,b in zip(given, table.noisy_labels_0)) == 25

def test_labelled_order_is_seeded(small):
    def order(seed): return noisy_imagenette_dls(0, 32, small, bs=8, num_workers=0, seed=seed).train.shuffle_fn(list(range(100)))
    assert order(3) == order(3) != order(4)

def test_imagewang(tmp_path):
    for c in 'abc': put(tmp_path/'train'/c, 4)
    for c in 'ab': put(tmp_path/'val'/c, 2)
    put(tmp_path/'unsup', 7)
    dls = imagewang_dls(32, tmp_path, bs=4, num_workers=0)
    assert dls.vocab == ['a','b'] and (len(dls.train_ds),len(dls.valid_ds),len(dls.unlabeled)) == (8,4,7)
    assert len(imagewang_dls(32, tmp_path, extra='train/c', bs=4, num_workers=0).unlabeled) == 11
    with pytest.raises(InputError, match='no folder'): imagewang_dls(32, tmp_path, extra='train/z')
    with pytest.raises(InputError, match='does not look like Imagewang'): imagewang_table(tmp_path/'train')

def test_own_images_in_every_form(small, table, tmp_path):
    as_own = table.rename(columns={'noisy_labels_50':'label', 'noisy_labels_0':'true'})
    as_own.to_csv(tmp_path/'mine.csv', index=False)
    for source,kw in [(small,{}), (as_own,dict(path=small)), (tmp_path/'mine.csv',dict(path=small)),
                      (as_own.rename(columns=dict(path='f', label='l', is_valid='v')),dict(path=small, fn_col='f', label_col='l', valid_col='v'))]:
        dls = own_dls(source, 32, bs=8, num_workers=0, unlabeled=small/'val', **kw)
        assert (len(dls.train_ds),len(dls.valid_ds),len(dls.unlabeled)) == (100,20,20)
    split = [own_table(as_own.drop(columns='is_valid'), small, seed=s)[0].is_valid for s in (0,0,1)]
    assert abs(split[0].sum()-24) < 6 and split[0].equals(split[1]) and not split[0].equals(split[2])
    assert (own_table(as_own, small)[0].true == table.noisy_labels_0).all()

def test_a_random_split_has_each_class_on_both_sides():
    df = pd.DataFrame(dict(path=[f'{i}.png' for i in range(33)], label=['big']*30+['two']*2+['one']))
    from sesemi_fastai.own import _own_split
    for seed in range(20):
        valid = _own_split(df, .2, seed).query('is_valid').label.value_counts()
        assert valid.to_dict() == dict(big=6, two=1)

def test_titles_name_the_true_label(small):
    import matplotlib.pyplot as plt
    dls = noisy_imagenette_dls(50, 32, small, bs=8, num_workers=0)
    show_noisy_batch(dls, max_n=30)
    titles = [(ax.get_title(),ax.title.get_color()) for ax in plt.gcf().axes]
    plt.close('all')
    wrong = [t for t,c in titles if c == 'crimson']
    assert 5 < len(wrong) < 25 and all('truly' in t for t in wrong) and not any('truly' in t for t,c in titles if c == 'black')

def test_pictures_are_not_black(small):
    "A picture decoded twice would be"
    import matplotlib.pyplot as plt
    from sesemi_fastai.stream import show_rotated_batch
    dls = noisy_imagenette_dls(50, 32, small, bs=8, num_workers=0)
    for show in (show_noisy_batch, show_rotated_batch):
        show(dls)
        ims = [np.asarray(ax.images[0].get_array()) for ax in plt.gcf().axes if ax.images]
        plt.close('all')
        assert np.mean([im.max() > 60 for im in ims]) > .9 and max(im.max() for im in ims) <= 255

# -- the drawn set
def test_drawn_set_is_balanced_and_as_noisy_as_it_says(tmp_path):
    df = pd.read_csv(make_mini(tmp_path/'m', 300, 100, seed=5)/'noisy_mini.csv')
    assert df.columns.tolist() == ['path','noisy_labels_0','noisy_labels_1','noisy_labels_5','noisy_labels_25','noisy_labels_50','is_valid']
    train = df[~df.is_valid]
    assert (train.noisy_labels_0.value_counts() == 30).all() and set(train.noisy_labels_0) == set(objects)
    assert [(train[f'noisy_labels_{n}'] != train.noisy_labels_0).sum() for n in (1,5,25,50)] == [3,15,75,150]
    assert (tmp_path/'m'/df.path[0]).suffix == '.JPEG' and Image.open(tmp_path/'m'/df.path[0]).size == (64,64)
    make_mini(tmp_path/'m', 100, 20, seed=5)
    assert len(list((tmp_path/'m').rglob('*.JPEG'))) == 120, "another size replaces it whole"

# -- noise
@pytest.mark.parametrize('n,noise', [(1000,.5), (999,.25), (7,.3), (10,0), (10,1)])
def test_symmetric_noise_counts_exactly(n, noise):
    labels = pd.Series(list('abcde')*n)[:n]
    assert (add_label_noise(labels, noise, seed=n) != labels).sum() == round(noise*n)

def test_noise_reaches_every_other_class():
    noisy = add_label_noise(np.zeros(1000, int), .9, classes=range(5), seed=0)
    counts = np.bincount(noisy, minlength=5)
    assert counts[0] == 100 and (abs(counts[1:]-225) < 60).all()

# -- mistakes
def test_mistakes_in_a_table(small, table, tmp_path):
    def wrong(change, words):
        folder = tmp_path/str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        df = change(table.copy())
        with pytest.raises(InputError, match=words): noisy_table(with_table(small, folder, df), 5)
    def set_at(i, col, v):
        def f(df): df[col] = df[col].astype(object); df.loc[i,col] = v; return df
        return f
    wrong(lambda df: df.drop(columns='noisy_labels_5'), "no column 'noisy_labels_5'")
    wrong(lambda df: df.drop(columns='is_valid'), "no column 'is_valid'")
    wrong(set_at(3, 'path', '../mini/train/mug/x.JPEG'), 'leads out')
    wrong(set_at(3, 'path', '/etc/passwd'), 'leads out')
    wrong(set_at(3, 'path', 'C:\\x.JPEG'), 'leads out')
    wrong(set_at(3, 'path', None), 'row 3 .* has no path')
    wrong(set_at(3, 'path', table.path[4]), 'stands twice')
    wrong(set_at(3, 'path', 'train/mug/gone.JPEG'), 'not there')
    wrong(set_at(3, 'is_valid', 'perhaps'), 'must hold True and False')
    wrong(set_at(3, 'noisy_labels_5', None), 'has no label')
    wrong(lambda df: df[df.is_valid | (df.noisy_labels_5 != 'mug')], "'mug' is in the validation images only")
    wrong(lambda df: df[~df.is_valid], 'no validation images')

def test_tables_that_pandas_makes(small, table):
    own = table.rename(columns={'noisy_labels_0':'label'}).drop(columns='is_valid')
    twice = pd.concat([own[:60], own[60:].reset_index(drop=True)])
    assert len(own_table(twice, small)[0]) == 120
    with pytest.raises(InputError, match='not there'): own_table(own.assign(path=range(120)), small)
    with pytest.raises(InputError, match="no column 'is_vald'"): own_table(own, small, valid_col='is_vald')
    assert own_table(own.assign(label=[i%3 for i in range(120)]), small)[0].label.unique().tolist() == ['0','1','2']

def test_a_drawn_set_of_another_size_is_used_as_it_is(tmp_path):
    from sesemi_fastai.mini import mini_dls
    make_mini(tmp_path/'m', 30, 10, seed=4)
    (tmp_path/'m/mine.txt').write_text('mine')
    assert len(mini_dls(0, 32, tmp_path/'m', bs=8, num_workers=0).train_ds) == 30 and (tmp_path/'m/mine.txt').exists()

def test_mistakes_in_files(tmp_path):
    with pytest.raises(InputError, match='there is no folder'): noisy_table(tmp_path/'gone', 5)
    with pytest.raises(InputError, match='and holds 0'): noisy_table(tmp_path, 5)
    (tmp_path/'noisy_x.csv').write_bytes(b'\xff\xfe\x00path')
    with pytest.raises(InputError, match='not a CSV file in UTF-8'): noisy_table(tmp_path, 5)
    (tmp_path/'noisy_x.csv').write_text('')
    with pytest.raises(InputError, match='not a CSV file'): noisy_table(tmp_path, 5)
    with pytest.raises(InputError, match='no images below'): own_dls(tmp_path)
    with pytest.raises(InputError, match='no folder or table'): own_dls(tmp_path/'mine.csv')

def test_mistakes_in_arguments(small):
    for kw,words in [(dict(bs=500), 'do not fill one batch of 500'), (dict(bs=0), 'at least one image'), (dict(size=4), 'at least 16 pixels')]:
        with pytest.raises(InputError, match=words): noisy_imagenette_dls(5, path=small, num_workers=0, **kw)

def test_tree_survives_a_kill_and_refuses_strangers(small, table, tmp_path, monkeypatch):
    class Dead(BaseException): pass
    def dies(src, dst): raise Dead
    monkeypatch.setitem(linkers, 'hard', dies)
    with pytest.raises(Dead): write_noisy_tree(small, 5, tmp_path, 'hard')
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    tree = write_noisy_tree(small, 5, tmp_path, 'hard')
    assert len([o for o in tree.rglob('*.JPEG')]) == 120 and list(tmp_path.iterdir()) == [tree]
    (tmp_path/'noisy50').mkdir()
    (tmp_path/'noisy50/precious.txt').write_text('mine')
    with pytest.raises(InputError, match='move it away'): write_noisy_tree(small, 50, tmp_path)
    assert (tmp_path/'noisy50/precious.txt').read_text() == 'mine'
    bad = tmp_path/'bad'
    bad.mkdir()
    table.loc[[5,105],'noisy_labels_5'] = '../up'
    with pytest.raises(InputError, match='no folder name'): write_noisy_tree(with_table(small, bad, table), 5, tmp_path/'o')

@pytest.mark.cell('Learner', 'unlabeled images of a builder are turned beside the training images, or alone; also where they come out of a store')
@pytest.mark.parametrize('kw', [dict(), dict(store='st')])
def test_unlabeled_images_of_a_builder(small, tmp_path, kw):
    dls = own_dls(small/'train', size=32, bs=8, num_workers=0, unlabeled=small/'val', **{k:tmp_path/v for k,v in kw.items()})
    of_training,more = ({str(small/'train'/o) for o in dls.table.path[~dls.table.is_valid]},{str(o) for o in dls.unlabeled})
    assert {str(o) for o in unlabeled_items(dls)} == of_training | more and {str(o) for o in unlabeled_items(dls, dls.unlabeled)} == more
    assert len(unlabeled_items(dls, 'valid')) == len(dls.table)+len(more)
    for source,n in ((None,len(of_training)+len(more)), (dls.unlabeled,len(more))):
        dl = unlabeled_dl(dls, source, bs=4)
        assert len(dl.dataset) == n and dl.one_batch()[0].shape == (4,3,32,32)
    assert not sees_validation(dls, unlabeled_items(dls)) and sees_validation(dls, unlabeled_items(dls, 'valid'))
    assert sees_validation(dls, unlabeled_items(dls, small/'train'))
    whole = own_dls(small/'train', size=32, bs=8, num_workers=0, unlabeled=small/'train')
    assert len(unlabeled_items(whole)) == len(whole.table), 'a training image is turned once'

def test_validation_images_among_the_unlabeled_ones(small, tmp_path, monkeypatch):
    "Also where folders are relative, or links"
    (tmp_path/'link').symlink_to(small/'train')
    monkeypatch.chdir(small)
    for source in ('train', small/'train', tmp_path/'link'):
        for unlabeled in ('train', small/'train', tmp_path/'link'):
            dls = own_dls(source, size=32, bs=8, num_workers=0, unlabeled=unlabeled)
            items = unlabeled_items(dls)
            assert len(items) == len(dls.table) and sees_validation(dls, items), (source,unlabeled)

def test_data_that_cannot_be_fetched(monkeypatch):
    from urllib.error import URLError
    from sesemi_fastai import data
    def offline(url): raise URLError('no route')
    monkeypatch.setattr(data, 'untar_data', offline)
    for build in (data.noisy_imagenette_dls, data.imagewang_dls):
        with pytest.raises(InputError, match='cannot be fetched .*no route.*: give --path'): build(size=32)
