"Labels, data, records and files that could be taken for others: they are told apart, or refused in one line"
import copy, json, os, shutil, subprocess
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image
import sesemi_fastai
from sesemi_fastai import experiment, study
from sesemi_fastai.core import InputError, image_files
from sesemi_fastai.corrections import accepted, corrected
from sesemi_fastai.data import leaves_folder
from sesemi_fastai.own import own_table
from sesemi_fastai.experiment import resume_run, train_run
from sesemi_fastai.mini import make_mini
from sesemi_fastai.noise import add_label_noise
from sesemi_fastai.page import run_pictures
from sesemi_fastai.predictions import plot_confusion, read_predictions
from sesemi_fastai.recipe import resolved
from sesemi_fastai.record import Record, find_records, git_commit
from sesemi_fastai.setup import method_of
from sesemi_fastai.study import run_missing, study_runs
from sesemi_fastai.table import against_plain, result_table, summary
from sesemi_fastai.tree import write_noisy_tree

small = dict(path=None, dataset='mini', size=32, arch='xresnet10_half', bs=8, workers=0, epochs=1, precision='fp32', unlabeled='none', bar=False)

@pytest.fixture(scope='module')
def mini(tmp_path_factory): return make_mini(tmp_path_factory.mktemp('taken')/'mini', 60, 20)

def picture(f):
    f.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((32,32,3), 90, np.uint8)).save(f)

def table_file(tmp_path, labels, true=None):
    "A CSV file of as many images as labels, each label in both splits"
    rows = [dict(path=f'{i}.png', label=o, is_valid=i >= len(labels), **({} if true is None else dict(true=true[i%len(labels)])))
            for i,o in enumerate(labels*2)]
    for o in rows: picture(tmp_path/o['path'])
    pd.DataFrame(rows).to_csv(tmp_path/'t.csv', index=False)
    return tmp_path/'t.csv'

def a_record(**changes):
    "A finished record; `seed`, `method`, `digest` and `final` are put in"
    o = json.loads((Path(__file__).parents[1]/'nbs/experiments/results/robust64/noise50-plain-epochs20-seed0/record.json').read_text())
    o['config'] = {**o['config'], **{k:v for k,v in changes.items() if k not in ('method','final','digest')}}
    o['method'],o['accuracy'] = changes.get('method','plain'),changes.get('final',.5)
    o['data'] = {**o['data'], 'digest':changes.get('digest')}
    return o

# -- labels
@pytest.mark.cell('Bad tables', 'numbers as labels, with empty cells or leading zeros: each label stays what it is')
def test_numbers_with_a_gap_are_the_same_labels(tmp_path):
    "A column with an empty cell comes back from pandas as 1.0 and 2.0"
    for true in (['1','2',''], [1.,2.,None], ['1.0','2.0','']):
        df,_ = own_table(table_file(tmp_path, [1,2,1], true))
        known = df[df.true.notna()]
        assert len(known) == 4 and (known.true == known.label).all() and set(df.label) == {'1','2'}
    df,_ = own_table(pd.DataFrame(dict(path=df.path, label=df.label.astype(int), true=df.true.astype(float), is_valid=df.is_valid)), tmp_path)
    assert (df.true.dropna() == df.label[df.true.notna()]).all()

def test_leading_zeros_are_part_of_a_label(tmp_path):
    assert set(own_table(table_file(tmp_path, ['001','01','007']))[0].label) == {'001','01','007'}
    assert set(own_table(table_file(tmp_path, ['1000','1e3']))[0].label) == {'1000','1e3'}
    with pytest.raises(InputError, match='labels are classes'): own_table(table_file(tmp_path, ['1.5','2']))

def test_own_list_of_a_table_of_numbers():
    table = pd.DataFrame(dict(path=list('abc'), label=[0.,1.,1.], is_valid=False))
    fixes = pd.DataFrame(dict(path=['a'], label=['0'], action=['relabel'], new_label=['1']))
    assert corrected(table, fixes).label.tolist() == [1.,1.,1.]

def test_an_image_that_is_listed_twice_is_judged_once():
    df = pd.DataFrame(dict(path=['a','a','b'], label=['x','x','y'], suggested=['y','y','x'], score=[.9,.8,.7]))
    assert accepted(df, .5).path.tolist() == ['a','b'] and accepted(df, top=1).score.tolist() == [.9]

@pytest.mark.parametrize('kwargs', [dict(seed=-1), dict(seed=.5), dict(classes=['a','a','b'])])
def test_mistakes_in_label_noise(kwargs):
    with pytest.raises(InputError): add_label_noise(['a','b'], .5, **kwargs)
    with pytest.raises(InputError, match='is missing'): add_label_noise(['a',None], .5)

# -- data
@pytest.mark.cell('Studies', 'runs on data of one name that are not the same: neither averaged nor compared')
def test_runs_on_other_data_are_not_averaged():
    old,new = [a_record(seed=s, digest='a', final=.5) for s in (0,1)],[a_record(seed=s, digest='b', final=.9) for s in (0,1)]
    assert summary(old+new).final.tolist() == [50.,90.] and result_table(old+new)['data digest'].tolist() == ['a','b']
    unknown = a_record(seed=2, digest=None, final=.5)
    assert summary([*old,unknown]).runs.tolist() == [3] and 'data digest' not in result_table([*old,unknown])
    assert sorted(summary([*old,*new,unknown]).runs) == [1,2,2]

def test_a_gain_over_plain_is_one_on_the_same_data():
    plain = [a_record(seed=s, digest='a', final=.5) for s in (0,1)]
    def gain(**kwargs): return against_plain([*plain,*(a_record(seed=s, method='ELR', robust='elr', final=.6, **kwargs) for s in (0,1))])[0]['passes']
    assert gain(digest='a').round(6).tolist() == [10.,10.] and gain(digest='b') is None
    assert gain(digest='b', corrections='c.csv [12345678]').round(6).tolist() == [10.,10.] # corrected labels are other data

def test_plain_training_of_the_nearest_length():
    plain = [a_record(seed=0, epochs=n, final=f) for n,f in ((40,.5),(41,.7))]
    for o,n in zip(plain, (40,41)): o['labelled_passes'] = n
    other = a_record(seed=0, epochs=40, method='ELR', robust='elr', final=.6)
    other['labelled_passes'] = 40.
    assert against_plain([*plain,other])[0]['passes'].round(6).tolist() == [10.]

def test_the_folder_where_one_is_has_a_name(tmp_path, monkeypatch):
    for split in ('a','b'):
        for i in range(4): picture(tmp_path/'here'/split/f'{i}.png')
    monkeypatch.chdir(tmp_path/'here')
    assert resolved(dict(path='.', store='.'))['path'] == resolved(dict(store='.'))['store'] == 'here'
    assert set(own_table('.')[0].label) == {'a','b'}
    assert train_run(**{**small, 'dataset':'own', 'path':'.', 'bs':4})['data']['folder'] == 'here'
    for o in 'ab': shutil.rmtree(o)
    for i in range(2): picture(Path(f'{i}.png'))
    with pytest.raises(InputError, match="one class only, 'here'"): own_table('.')

def test_names_with_a_colon():
    assert leaves_folder(pd.Series(['ratio 3:4/0.jpg','C:\\x.jpg','c:/x.jpg'])).tolist() == [False,True,True]

def test_a_name_that_is_no_text_is_told_before_training(tmp_path, mini):
    for o in 'ab':
        for i in range(4): picture(tmp_path/'own'/o/f'{i}.png')
    os.rename(os.fsencode(tmp_path/'own/a/3.png'), os.fsencode(tmp_path/'own/a')+b'/\xff3.png')
    with pytest.raises(InputError, match='is not UTF-8'): train_run(**{**small, 'dataset':'own', 'path':str(tmp_path/'own'), 'out':str(tmp_path/'out')})
    (tmp_path/'own/b/3.png').write_bytes(b'no image')
    os.rename(tmp_path/'own/b/3.png', os.fsdecode(os.fsencode(tmp_path/'own/b/')+b'\xfe.png'))
    from test_cli import run
    res = run('sesemi-data', 'scan', '--path', tmp_path/'own')
    assert res.returncode == 0 and '\\udcfe.png' in res.stdout

def test_a_folder_that_may_not_be_read_is_not_passed_over(tmp_path, monkeypatch):
    picture(tmp_path/'a/0.png'), picture(tmp_path/'b/0.png')
    scan = os.scandir
    def refuses(folder):
        if Path(folder).name == 'a': raise PermissionError(13, 'Permission denied', str(folder))
        return scan(folder)
    monkeypatch.setattr(os, 'scandir', refuses)
    with pytest.raises(InputError, match='a cannot be read: Permission denied'): image_files(tmp_path)

def test_drawing_anew_loses_nothing(tmp_path):
    make_mini(tmp_path/'m', 10, 10)
    (tmp_path/'m/notes.txt').write_text('mine')
    with pytest.raises(InputError, match='notes.txt besides'): make_mini(tmp_path/'m', 20, 10)
    make_mini(tmp_path/'m', 10, 10)
    (tmp_path/'m/notes.txt').unlink()
    assert len(image_files(make_mini(tmp_path/'m', 20, 10))) == 30

def test_a_tree_of_links_is_no_tree_of_copies(mini, tmp_path):
    for link in ('symlink','symlink','hard','copy'):
        if link == 'hard': tree = tmp_path/'noisy50'; subprocess.run(['rm','-r',tree], check=True)
        if link != 'copy': assert write_noisy_tree(mini, 50, tmp_path, link).is_dir()
    with pytest.raises(InputError, match='made with --link hard'): write_noisy_tree(mini, 50, tmp_path, 'copy')

# -- runs and their records
def test_the_commit_is_that_of_this_package(tmp_path, monkeypatch):
    "A package that is installed within somebody's project is not of their repository"
    package = tmp_path/'.venv/lib/sesemi_fastai'
    package.mkdir(parents=True)
    (package/'__init__.py').touch()
    (tmp_path/'.gitignore').write_text('.venv\n')
    for args in (['init','-q'], ['add','.gitignore'], ['-c','user.name=a','-c','user.email=a@b','commit','-qm','x']):
        subprocess.run(['git','-C',tmp_path,*args], check=True)
    monkeypatch.setattr(sesemi_fastai, '__path__', [str(package)])
    assert git_commit() is None

def test_the_size_of_rotated_images_is_kept():
    "A run that is killed after its last epoch counts them as large as they were"
    keep = Record(dict(started='', resumed=0))
    keep.before_fit()
    keep.share = .25
    other = Record(dict(started='', resumed=0))
    other.before_fit()
    other.load_state_dict(keep.state_dict())
    assert other.share == .25

@pytest.mark.cell('Suspicious labels', 'corrections that change or vanish while a run trains: it keeps those that it began with, also through a kill')
def test_corrections_that_grow_while_a_run_trains(mini, tmp_path, monkeypatch):
    "The run keeps what it was trained with, also if it is killed, and the file is gone"
    table = pd.read_csv(mini/'noisy_mini.csv')
    paths = table.path[~table.is_valid].tolist()
    def write(n): pd.DataFrame([dict(path=o, action='drop') for o in paths[:n]]).to_csv(tmp_path/'c.csv', index=False)
    set_up,leave = experiment.set_up,experiment._leave_results
    def grows(*args, **kwargs):
        res = set_up(*args, **kwargs)
        write(3)
        return res
    def killed(*args, **kwargs): raise KeyboardInterrupt
    write(1)
    monkeypatch.setattr(experiment, 'set_up', grows)
    monkeypatch.setattr(experiment, '_leave_results', killed)
    with pytest.raises(KeyboardInterrupt): train_run(**{**small, 'path':str(mini), 'corrections':str(tmp_path/'c.csv'), 'out':str(tmp_path/'r')})
    monkeypatch.setattr(experiment, 'set_up', set_up)
    monkeypatch.setattr(experiment, '_leave_results', leave)
    (tmp_path/'c.csv').unlink()
    os.rename(tmp_path/'r', tmp_path/'moved')
    o = resume_run(tmp_path/'moved', bar=False)
    assert o['status'] == 'done' and o['data']['train_images'] == 59 and o['config']['corrections'].startswith('c.csv [')
    assert pd.read_csv(tmp_path/'moved/corrections.csv').path.tolist() == paths[:1]

@pytest.mark.cell('Resume', 'with the path of other data: refused, and without it the run goes on as if nothing had been asked')
@pytest.mark.parametrize('wrong', ['other data','no data'])
def test_resume_with_a_wrong_path_changes_nothing(mini, tmp_path, monkeypatch, wrong):
    leave = experiment._leave_results
    def killed(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(experiment, '_leave_results', killed)
    with pytest.raises(KeyboardInterrupt): train_run(**{**small, 'path':str(mini), 'out':str(tmp_path/'r')})
    monkeypatch.setattr(experiment, '_leave_results', leave)
    other = make_mini(tmp_path/'other', 60, 20, seed=5) if wrong == 'other data' else tmp_path
    def kept(): return [(tmp_path/'r'/o).read_text() for o in ('checkpoints/args.json','record.json')]
    before = kept()
    with pytest.raises(InputError): resume_run(tmp_path/'r', str(other), bar=False)
    with monkeypatch.context() as mp, pytest.raises(KeyboardInterrupt): # while the wrong folder is looked through
        mp.setattr(experiment, 'set_up', killed)
        resume_run(tmp_path/'r', str(other), bar=False)
    assert kept() == before
    moved = shutil.copytree(mini, tmp_path/'moved')
    with monkeypatch.context() as mp, pytest.raises(KeyboardInterrupt):
        mp.setattr(experiment, '_leave_results', killed)
        resume_run(tmp_path/'r', str(moved), bar=False)
    assert json.loads(kept()[0])['path'] == str(moved) # and where the data have gone is kept
    assert resume_run(tmp_path/'r', bar=False)['status'] == 'done'

@pytest.mark.cell('Keeping', 'the same command over a finished run: its record stays')
def test_a_finished_run_is_not_trained_over(mini, tmp_path):
    args = {**small, 'path':str(mini), 'out':str(tmp_path/'r'), 'max_steps':1}
    train_run(**args)
    was = (tmp_path/'r/record.json').read_text()
    with pytest.raises(InputError, match='holds this run, finished'): train_run(**args)
    assert (tmp_path/'r/record.json').read_text() == was and train_run(**args, resume=True) == json.loads(was)

@pytest.mark.parametrize('change', [lambda o: o.pop('method'), lambda o: o.update(accuracy=None), lambda o: o['versions'].pop('torch'),
    lambda o: o['data'].pop('pixels'), lambda o: o.update(history=[]), lambda o: o['config'].update(newopt=1), lambda o: o.update(config=3)])
def test_records_of_somebody_else(tmp_path, change):
    o = a_record()
    change(o)
    (tmp_path/'r').mkdir()
    (tmp_path/'r/record.json').write_text(json.dumps(o))
    with pytest.raises(InputError, match='r/record.json'): find_records(tmp_path)

@pytest.mark.parametrize('text', ['', 'x\n1\n', 'path,label,predicted,probability,of_label\n', 'path,label,predicted,probability,of_label\na,b,c,d,e\n'])
def test_predictions_of_somebody_else(tmp_path, text):
    (tmp_path/'predictions.csv').write_text(text)
    with pytest.raises(InputError, match='is not a table of predictions'): read_predictions(tmp_path/'predictions.csv')

def test_options_that_do_nothing_have_no_name():
    assert method_of(resolved(dict(unlabeled='batch', turns='one'))) == 'SESEMI, own batch'

def test_mistakes_in_a_study_that_are_told_before_it_begins():
    grid = [dict(method='a', seed=[0,1])]
    with pytest.raises(InputError, match=r"\[method.unused\]: option 'robst' is unknown"):
        study_runs(dict(grid=grid, method=dict(a={}, unused=dict(robst='x'))))
    with pytest.raises(InputError, match='rot_size=96'): study_runs(dict(grid=grid, method=dict(a=dict(rot_size=96, size=64))))

def test_time_left_is_that_of_runs_that_are_not_finished(tmp_path, monkeypatch, capsys):
    runs = {f'r{i}':{**small, 'seed':i} for i in range(6)}
    runs = {k:{j:v for j,v in o.items() if j != 'bar'} for k,o in runs.items()}
    done = {'r1','r2','r3','r4'}
    monkeypatch.setattr(study, 'is_done', lambda folder,config: folder.name in done)
    monkeypatch.setattr(study, 'train_run', lambda **kwargs: None)
    class Clock:
        done,seen = 0.,[]
        def __call__(self, costs): self.seen.append(sum(costs)); return ''
    monkeypatch.setattr(study, '_TimeLeft', Clock)
    run_missing(runs, tmp_path)
    assert Clock.seen == [2,1]

# -- pages
@pytest.fixture
def two_runs(tmp_path):
    "Runs of two networks on two data sets, whose classes are prices"
    folders = []
    for data,arch in (('one','xresnet18'),('two','xresnet34')):
        picture(tmp_path/data/f'{data}.png')
        folder = tmp_path/'runs'/data
        folder.mkdir(parents=True)
        pd.DataFrame([dict(path=f'{data}.png', label='$', predicted='a $x% of$ b', probability=.9, of_label=.1)]).to_csv(folder/'predictions.csv', index=False)
        folders.append(folder)
    return [a_record(arch=o, digest='a') for o in ('xresnet18','xresnet34')],folders

def test_a_picture_for_each_kind_of_run(two_runs, tmp_path):
    records,folders = two_runs
    names = list(run_pictures(records, folders))
    assert len(names) == 2 and 'arch xresnet18' in names[0] and 'arch xresnet34' in names[1]
    same = list(run_pictures([records[0],copy.deepcopy(records[0])], folders))
    assert len(same) == 1 and 'arch' not in same[0]

def test_pictures_of_runs_on_two_data_sets(two_runs, tmp_path):
    with pytest.warns(UserWarning, match='1 of 2 kinds of runs are of other data'): res = run_pictures(*two_runs, tmp_path/'two')
    assert len(res) == 3
    for o in res.values(): o.canvas.draw() # names of classes are no formulas
    with pytest.raises(InputError, match='is not there'): run_pictures(*two_runs, tmp_path/'runs')
    (tmp_path/'two/two.png').write_bytes(b'no image')
    with pytest.raises(InputError, match='two.png cannot be read'): run_pictures(*two_runs, tmp_path/'two')

def test_pictures_of_data_with_files_of_the_same_names(two_runs, tmp_path):
    records,folders = two_runs
    for o in ('one','two'): picture(tmp_path/'same'/o/'0.png')
    for r,f in zip(records, folders):
        r['data'] = {**r['data'], 'folder':f.name}
        pd.DataFrame([dict(path='0.png', label='a', predicted='b', probability=.9, of_label=.1)]).to_csv(f/'predictions.csv', index=False)
    with pytest.warns(UserWarning, match='1 of 2 kinds of runs are of other data'): res = run_pictures(records, folders, tmp_path/'same/two')
    shown = [o for o in res if 'least likely' in o]
    assert len(shown) == 1 and 'xresnet34' in shown[0]

def test_confusion_of_many_classes_shows_those_with_mistakes():
    df = pd.DataFrame(dict(label=[f'c{i:03}' for i in range(100)]*2, predicted=[f'c{i:03}' for i in range(100)]+[f'c{min(99,i+50):03}' for i in range(100)]))
    fig = plot_confusion(df, most=5)
    ax = fig.axes[0]
    assert len(ax.get_xticklabels()) == 5 and '5 classes with the most mistakes' in ax.get_ylabel() and 'c099' in [o.get_text() for o in ax.get_xticklabels()]
