"Many runs from one file: several processes, kills, and what is shown of them"
import json, os, random, signal, subprocess, time
from pathlib import Path
import pandas as pd, pytest, torch
from fastai.vision.all import DataLoaders, Learner
from sesemi_fastai.core import InputError
from sesemi_fastai.mini import make_mini
from sesemi_fastai.recipe import resolved
from sesemi_fastai.record import find_records, read_record, read_records
from sesemi_fastai.study import read_study, run_cost, run_missing, study_records, study_runs
from sesemi_fastai.table import against_plain, paired_difference, result_table
from sesemi_fastai.weights import export_weights
from test_cli import BIN, run, small, typed

@pytest.fixture(scope='module')
def mini(tmp_path_factory): return make_mini(tmp_path_factory.mktemp('study')/'mini', 120, 20)

six = '''
[all]
dataset = "own"
size = 32
arch = "xresnet18"
bs = 16
workers = 0
epochs = 3
precision = "fp32"
[[grid]]
method = ["plain", "sesemi"]
seed = [0, 1, 2]
[method.plain]
unlabeled = "none"
[method.sesemi]
turns = "one"
'''

def start(file, mini, log):
    return subprocess.Popen([BIN/'sesemi-study', 'run', file, '--path', mini, '--no-bar'], stdout=open(log, 'ab'), stderr=subprocess.STDOUT,
                            env={**os.environ, 'OMP_NUM_THREADS':'1'}, start_new_session=True)

def starts(log): return [o.split()[1].rstrip(',') for o in log.read_text().splitlines() if o[:2] in {f'{i}/' for i in range(1, 7)}]

@pytest.mark.cell('Resume', 'a study killed twice with SIGKILL and run by two processes at once ends with each record once')
def test_two_processes_killed_twice(mini, tmp_path):
    "No run is lost, none is trained twice; a killed one goes on from its checkpoint"
    file,seed = tmp_path/'six.toml',random.randrange(10**6)
    file.write_text(six)
    rng,logs = random.Random(seed),[tmp_path/f'log{i}' for i in (0,1)]
    for _ in range(2):
        both = [start(file, mini, log) for log in logs]
        began = time.time()
        while not sum(len(starts(o)) for o in logs if o.exists()) and time.time()-began < 60: time.sleep(.2)
        time.sleep(rng.uniform(0, 6))
        for p in both: os.killpg(p.pid, signal.SIGKILL); p.wait()
    both = [start(file, mini, log) for log in logs]
    assert [p.wait(timeout=300) for p in both] == [0,0], [o.read_text()[-500:] for o in logs]
    out = tmp_path/'six'
    records = [json.loads((out/k/'record.json').read_text()) for k in read_study(file)]
    assert len(records) == len(list(out.rglob('record.json'))) == 6, seed
    assert all(o['status'] == 'done' and len(o['history']) == 3 for o in records), seed
    assert not list(out.rglob('*.pth'))
    begun = sum((starts(o) for o in logs), [])
    assert len(begun) <= 6+4, (seed,begun) # each kill can end a run in each process
    assert sum(o.get('resumed', 0) for o in records) <= 4
    n = len(begun)
    assert start(file, mini, logs[0]).wait(timeout=60) == 0 and len(sum((starts(o) for o in logs), [])) == n

@pytest.fixture(scope='module')
def finished(mini, tmp_path_factory):
    "A small study of two seeds, finished, with a run twice as long"
    folder = tmp_path_factory.mktemp('finished')
    text = six.replace('epochs = 3', '').replace('[0, 1, 2]', '[0, 1]\nepochs = 1').replace('turns = "one"',
        '') + '\n[[grid]]\nmethod = "plain"\nseed = [0, 1]\nepochs = 2\n'
    (folder/'s.toml').write_text(text)
    res = run('sesemi-study', 'run', folder/'s.toml', '--path', mini, '--no-bar')
    assert res.returncode == 0, res.stderr
    return folder

def test_progress_tells_the_time_left(mini, tmp_path):
    (tmp_path/'s.toml').write_text(six.replace('epochs = 3', 'epochs = 1').replace('[0, 1, 2]', '0'))
    res = run('sesemi-study', 'run', tmp_path/'s.toml', '--path', mini, '--no-bar')
    lines = [o for o in res.stdout.splitlines() if o[:2] in ('1/','2/')]
    assert lines[0] == '1/2 plain' and 'so far, about' in lines[1] and lines[1].endswith('left')

def test_table_has_differences_at_equal_passes_and_at_equal_compute(finished):
    res = run('sesemi-study', 'table', finished/'s.toml')
    assert res.returncode == 0, res.stderr
    row, = [o for o in res.stdout.splitlines() if o.split()[1:2] == ['SESEMI']]
    rec = {(o['method'],o['config']['epochs'],o['config']['seed']):100*o['accuracy'] for o in read_records(finished/'s')}
    passes,compute = (sum(rec['SESEMI',1,s]-rec['plain',e,s] for s in (0,1))/2 for e in (1,2))
    assert f'{passes:+.1f} (' in row and f'{compute:+.1f} (' in row and '±' in row
    assert "Student's 95 %" in res.stdout

def test_plot_and_list(finished):
    res = run('sesemi-study', 'plot', finished/'s.toml')
    assert res.returncode == 0 and (finished/'s/curves-own.png').stat().st_size > 10_000
    res = run('sesemi-study', 'list', finished/'s.toml')
    assert len(res.stdout.splitlines()) == 6 and all(o.startswith('done') for o in res.stdout.splitlines()), res.stdout

def test_published_figures_do_not_stand_beside_another_data_set(tmp_path, mini):
    (tmp_path/'s.toml').write_text('[all]\ndataset="mini"\nsize=32\narch="xresnet18"\nbs=16\nworkers=0\nepochs=1\nunlabeled="none"\n[[grid]]\nnoise=50\n')
    assert run('sesemi-study', 'run', tmp_path/'s.toml', '--path', mini, '--no-bar').returncode == 0
    assert 'Published by others' not in run('sesemi-study', 'table', tmp_path/'s.toml').stdout # drawn images are another data set

def test_published_figures_stand_beside_runs_on_the_photographs():
    study = Path(__file__).parent.parent/'nbs/experiments'
    out = run('sesemi-study', 'table', study/'ranger64.toml', '--out', study/'results/ranger64').stdout
    assert 'Published by others' in out and '57.76' in out

def test_an_edited_study_overwrites_nothing(mini, tmp_path):
    def go(epochs):
        (tmp_path/'s.toml').write_text(six.replace('epochs = 3', f'epochs = {epochs}').replace('[0, 1, 2]', '0').replace('["plain", "sesemi"]', '"plain"'))
        return run('sesemi-study', 'run', tmp_path/'s.toml', '--path', mini, '--no-bar')
    assert go(1).returncode == 0
    res = go(2)
    assert res.returncode == 2 and 'holds a finished run with other settings' in res.stderr and 'Traceback' not in res.stderr

def test_an_edited_study_deletes_nothing(mini, tmp_path, monkeypatch):
    "The checkpoints of an unfinished run stay when the study asks for another, and serve one that leaves folder and number format to the machine"
    from sesemi_fastai import experiment
    from sesemi_fastai.checkpoint import checkpoint_files
    from sesemi_fastai.core import InputError
    from sesemi_fastai.study import run_missing
    config = dict(path=str(mini), noise=50, size=32, arch='xresnet10_half', bs=16, workers=0, epochs=3, unlabeled='none', precision='fp32')
    class Now(experiment.FiniteLoss):
        def after_loss(self):
            if self.training and self.epoch == 2: raise KeyboardInterrupt
    with monkeypatch.context() as mp:
        mp.setattr(experiment, 'FiniteLoss', Now)
        with pytest.raises(KeyboardInterrupt): run_missing(dict(r=config), tmp_path, bar=False)
    left = [f.name for f in checkpoint_files(tmp_path/'r/checkpoints')]
    with pytest.raises(InputError, match='unfinished run with other settings'): run_missing(dict(r={**config, 'epochs':4}), tmp_path, bar=False)
    assert left and [f.name for f in checkpoint_files(tmp_path/'r/checkpoints')] == left
    args = (tmp_path/'r/checkpoints/args.json').read_text()
    (tmp_path/'r/checkpoints/args.json').write_text(args.replace('"epochs"', '"epoch"'))
    for again in (lambda: run_missing(dict(r=config), tmp_path, bar=False), lambda: experiment.resume_run(tmp_path/'r', bar=False),
                  lambda: experiment.train_run(**config, out=str(tmp_path/'r'), bar=False)):
        with pytest.raises(InputError, match='args.json is missing'): again()
    (tmp_path/'r/checkpoints/args.json').write_text(args)
    run_missing(dict(r={k:v for k,v in config.items() if k not in ('path','precision')}), tmp_path, bar=False)
    o = read_record(tmp_path/'r')
    assert o['status'] == 'done' and o['resumed'] == 1 and o['config']['precision'] == 'fp32'
    with pytest.raises(InputError, match='finished run with other settings'):
        experiment.train_run(**{**config, 'seed':7}, out=str(tmp_path/'r'), resume=True, bar=False)
    assert experiment.train_run(**config, out=str(tmp_path/'r'), resume=True, bar=False) == o == read_record(tmp_path/'r')

@pytest.mark.cell('Studies', 'a kill between the last epoch and the last result: the run goes on, and nothing of it is missing')
def test_kill_while_results_are_written(mini, tmp_path, monkeypatch):
    from sesemi_fastai import experiment
    from sesemi_fastai.study import run_missing
    runs,write = dict(r=dict(path=str(mini), noise=50, size=32, arch='xresnet10_half', bs=16, workers=0, epochs=2, unlabeled='none')),experiment._leave_results
    def killed(*args): raise SystemError('power cut')
    monkeypatch.setattr(experiment, '_leave_results', killed)
    with pytest.raises(SystemError): run_missing(runs, tmp_path, bar=False)
    assert read_record(tmp_path/'r')['status'] != 'done'
    monkeypatch.setattr(experiment, '_leave_results', write)
    run_missing(runs, tmp_path, bar=False)
    o = read_record(tmp_path/'r')
    assert o['status'] == 'done' and o['resumed'] == 1 and 'label_precision' in o and len(o['history']) == 2
    assert sorted(f.name for f in (tmp_path/'r').iterdir() if not f.name.startswith('.')) == ['labels.csv','predictions.csv','record.json']
    (tmp_path/'r/checkpoints').mkdir() # killed while these were cleared away
    run_missing(runs, tmp_path, bar=False)
    assert not (tmp_path/'r/checkpoints').exists()

def test_a_record_from_a_machine_with_another_best_format(mini, tmp_path):
    from sesemi_fastai.folder import is_done
    config = dict(path=str(mini), noise=50, size=32, arch='xresnet18', bs=16, workers=0, epochs=1, unlabeled='none', precision='fp32')
    assert run('sesemi-train', *[o for k,v in config.items() for o in ('--'+k, v)], '--out', tmp_path/'r', '--no-bar').returncode == 0
    auto = {k:v for k,v in config.items() if k != 'precision'}
    assert is_done(tmp_path/'r', auto) and is_done(tmp_path/'r', {**auto, 'precision':'auto'}) and not is_done(tmp_path/'r', {**auto, 'precision':'bf16'})

@pytest.mark.parametrize('grid,says', [('unlabeled = 3','give a text'), ('path = 5','give a text'), ('opt = [["sgd"]]','give a text'),
    ('recipe = [["a"]]','give a text'), ('method = [["a"]]','give the NAME'), ('arch = "xresnet19"','is unknown'),
    ('noise = 7','noise=7 is unknown'), ('dataset = "wang"\nnoise = 50','no published noisy labels'),
    ('rot_size = 24\nbn = "joint"','a forward pass for the rotated images alone'), ('recipe = "sesemi-80ep"\nepochs = 5','must be shorter'),
    ('seed = [0, 1]\nfeatures = [".", ".."]','')])
def test_what_can_be_told_before_training_is_told(tmp_path, grid, says):
    (tmp_path/'s.toml').write_text('[[grid]]\n'+grid, encoding='utf-8-sig')
    res = run('sesemi-study', 'list', tmp_path/'s.toml')
    assert (res.returncode == 2 and len(res.stderr.strip().splitlines()) == 1 if says else res.returncode == 0) and says in res.stderr, res.stderr

def test_no_run_outside_its_folder(tmp_path):
    (tmp_path/'s.toml').write_text('[[grid]]\nfeatures = ["..", "."]')
    assert 'cannot have the name' in run('sesemi-study', 'list', tmp_path/'s.toml').stderr

@pytest.mark.parametrize('args,says', [(['run','none.toml'], 'no study file none.toml'), (['paint','{s}'], 'choose run, table, plot or list'),
    (['run','{s}','--engine','slurm'], 'choose local or ray'),
    (['table','{s}','--out','nowhere'], 'no run of the study is finished'), (['run','{s}','--path','nowhere'], 'nowhere')])
def test_mistakes_get_one_line(tmp_path, monkeypatch, args, says):
    monkeypatch.chdir(tmp_path)
    Path('s.toml').write_text(six)
    res = run('sesemi-study', *[o.format(s='s.toml') for o in args])
    assert res.returncode == 2 and says in res.stderr and len(res.stderr.strip().splitlines()) == 1, res.stderr

def test_a_run_that_diverges_does_not_stop_the_others(mini, tmp_path):
    text = six.replace('epochs = 3', 'epochs = 1').replace('[0, 1, 2]', '0').replace('turns = "one"',
        'unlabeled = "none"\nopt = "sgd"\nlr = 1e6').replace('["plain", "sesemi"]', '["sesemi", "plain"]')
    (tmp_path/'s.toml').write_text(text)
    res = run('sesemi-study', 'run', tmp_path/'s.toml', '--path', mini, '--no-bar')
    assert res.returncode == 1 and '1 of 2 runs ended early' in res.stderr
    assert [o['config']['opt'] for o in read_records(tmp_path/'s')] == ['ranger']

@pytest.mark.parametrize('options', [dict(max_steps=12, epochs=4), dict(epoch_unit='steps', epochs=27)], ids=['max_steps','steps'])
def test_a_run_that_ends_at_its_last_step_is_not_trained_on(mini, tmp_path, monkeypatch, options):
    "Killed after its last checkpoint, before its results are written"
    import sesemi_fastai.experiment as exp
    common = dict(dataset='own', path=str(mini), size=32, arch='xresnet18', bs=16, workers=0, precision='fp32', bar=False, export_weights='pth', **options)
    whole = exp.train_run(out=str(tmp_path/'a'), **common)
    with monkeypatch.context() as m:
        def killed(*args): raise KeyboardInterrupt
        m.setattr(exp, '_leave_results', killed)
        with pytest.raises(KeyboardInterrupt): exp.train_run(out=str(tmp_path/'b'), **common)
    again = exp.resume_run(tmp_path/'b', bar=False)
    assert [again[k] for k in ('status','images','labelled_passes','accuracy')] == [whole[k] for k in ('status','images','labelled_passes','accuracy')]
    import torch
    a,b = (torch.load(tmp_path/f'{o}/model.pth', weights_only=True) for o in 'ab')
    a,b = (o.get('model', o) for o in (a,b))
    assert all(torch.equal(a[k], b[k]) for k in a if torch.is_tensor(a[k]))
    assert (tmp_path/'a/predictions.csv').read_text() == (tmp_path/'b/predictions.csv').read_text()

def test_options_that_go_together(mini, tmp_path):
    "What was asked for is what is trained, or one line says why not"
    from PIL import Image
    (tmp_path/'turned').mkdir()
    for i in range(20):
        im = Image.new('RGB', (40,40), (i,0,0))
        exif = im.getexif(); exif[0x0112] = 6
        im.save(tmp_path/f'turned/{i}.jpg', exif=exif)
    base = ['--dataset', 'own', '--path', mini, '--epochs', 2, '--no-bar', *small]
    for args,says in [(['--unlabeled',tmp_path/'turned'], 'lies upright'), (['--rot-only',2], 'shorter than the 2 epochs'),
                      (['--unlabeled','batch','--epoch-unit','unlabeled'], 'unlabeled batch'),
                      (['--unlabeled-bs',500,'--epoch-unit','unlabeled'], 'smaller unlabeled_bs')]:
        res = run('sesemi-train', *base, *args)
        assert res.returncode == 2 and says in res.stderr.strip().splitlines()[-1] and 'Traceback' not in res.stderr, (args,res.stderr)
    res = run('sesemi-train', *base, '--weight', 0, '--weight-end', 1)
    o = json.loads(res.stdout.splitlines()[-1])
    assert o['method'] == 'SESEMI, weight to 1' and o['history'][0]['rot_weight'] < o['history'][1]['rot_weight']
    res = run('sesemi-compare', tmp_path/'c', '--recipe', 'sesemi-5ep', '--path', mini)
    assert res.returncode == 2 and '--epoch-unit labelled' in res.stderr

def test_an_epoch_without_rotations_has_empty_columns(mini, tmp_path):
    res = run('sesemi-train', '--dataset', 'own', '--path', mini, '--epochs', 3, '--every', 1000, '--out', tmp_path/'e', '--no-bar', *small)
    history = json.loads(res.stdout.splitlines()[-1])['history']
    assert history[0]['rot_acc'] is not None and [o['rot_acc'] for o in history[1:]] == [None,None]
    res = run('sesemi-table', tmp_path/'e', '--plot', tmp_path/'p.png')
    assert res.returncode == 0 and (tmp_path/'p.png').exists(), res.stderr

def test_a_link_keeps_its_name_on_other_machines(tmp_path, monkeypatch):
    from sesemi_fastai.cluster import _with_full_paths
    from sesemi_fastai.recipe import resolved
    (tmp_path/'real-data').mkdir()
    (tmp_path/'nette').symlink_to('real-data')
    monkeypatch.chdir(tmp_path)
    config = dict(path='nette', unlabeled='train')
    there = _with_full_paths(config)
    assert there == dict(path=str(tmp_path/'nette'), unlabeled='train') and resolved(there)['path'] == resolved(config)['path'] == 'nette'

def test_an_option_of_a_method_that_a_grid_changes():
    study = dict(method=dict(m=dict(robust='gce', epochs=3)), grid=[dict(method='m', robust=['gce','elr'])])
    with pytest.raises(InputError, match=r"\[method.m\] has robust='gce', and a \[\[grid\]\] gives 'elr': leave one out"): study_runs(study)
    assert study_runs(dict(study, grid=[dict(method='m', robust='gce', seed=[0,1])]))

def test_weights_that_are_tied(tmp_path):
    pytest.importorskip('safetensors')
    from safetensors.torch import load_file
    layer = torch.nn.Linear(4, 4)
    export_weights(Learner(DataLoaders([], []), torch.nn.Sequential(layer, layer), loss_func=torch.nn.MSELoss()), tmp_path/'w.safetensors')
    assert {k:tuple(v.shape) for k,v in load_file(tmp_path/'w.safetensors').items()} == {'0.weight':(4,4), '0.bias':(4,), '1.weight':(4,4), '1.bias':(4,)}

def test_a_path_for_runs_of_several_folders(tmp_path):
    (tmp_path/'s.toml').write_text('[[grid]]\npath = ["a", "b"]\n')
    res = run('sesemi-study', 'list', tmp_path/'s.toml', '--path', 'c')
    assert res.returncode == 2 and 'different data folders: leave out --path' in res.stderr

@pytest.mark.parametrize('option', ['corrections','pretrained'])
def test_files_that_are_not_there_are_told_before_the_first_run(tmp_path, option):
    runs = {'a':dict(dataset='mini', path=str(tmp_path)), 'b':dict(dataset='mini', path=str(tmp_path), **{option:'nowhere.csv'})}
    with pytest.raises(InputError, match=f'run b: there is no file nowhere.csv for {option}'): run_missing(runs, tmp_path/'out')
    assert not (tmp_path/'out').exists()

def made_up(method='plain', seed=0, acc=.5, digest=None, epochs=2, **config):
    "A finished record"
    return dict(status='done', method=method, transductive=False, accuracy=acc, best_accuracy=acc, labelled_passes=epochs, images=epochs*100, seconds=1,
        device='a processor', threads=1, versions=dict(torch='2', fastai='2'), history=[dict(epoch=i+1, accuracy=acc) for i in range(epochs)],
        data=dict(folder='made-up', train_images=100, valid_images=20, pixels='64x64', digest=digest),
        config=dict(noise=50, size=64, arch='xresnet18', opt='ranger', sched='one_cycle', lr=.01, bs=8, epochs=epochs, seed=seed) | config)

def gains(records): return {d['kind']['method']:None if d['passes'] is None else d['passes'].round(1).to_dict() for d in against_plain(records)}

def test_corrected_labels_are_compared_with_the_table_that_they_were_made_from():
    own = dict(dataset='own', noise=0)
    of_a = [made_up(acc=.9, digest='a', path='a.csv', seed=s, **own) for s in (0,1)]
    of_b = [made_up(acc=.5, digest='b', path='b.csv', seed=s, **own) for s in (0,1)]
    fixed = [made_up('corrected labels', acc=.7, digest='c', path='b.csv', corrections='c.csv [1]', seed=s, **own) for s in (0,1)]
    assert gains(of_a+fixed) == {'corrected labels':None} and gains(of_a+of_b+fixed) == {'corrected labels':{0:20,1:20}}
    assert paired_difference(of_b+fixed, 0, ('corrected labels',2), ('plain',2)).round(1).tolist() == [20,20]
    with pytest.raises(InputError, match='file b.csv and a.csv'): paired_difference(of_a+fixed, 0, ('corrected labels',2), ('plain',2))
    later = [made_up(acc=.1, digest='b2', path='b.csv', seed=s, **own) for s in (0,1)] # another table of that name
    assert gains(of_b+later+fixed) == {'corrected labels':None}
    of_set = [made_up(digest='n', path='copy', seed=s) for s in (0,1)] # Noisy Imagenette, wherever its folder is
    assert gains(of_set+[made_up('corrected labels', acc=.6, digest='m', corrections='c.csv [1]', path='other')]) == {'corrected labels':{0:10}}

def test_own_tables_without_a_digest_are_known_by_their_file():
    own = dict(dataset='own', noise=0)
    a,b = made_up(acc=.9, path='a.csv', **own),made_up(acc=.1, path='b.csv', **own)
    assert result_table([a,b,made_up(acc=.3, path='b.csv', seed=1, **own)])['final epoch'].tolist() == ['90.0','20.0 ± 14.1']
    known = made_up(acc=.9, path='a.csv', digest='a', **own)
    assert len(result_table([known,b])) == 2 and gains([known,made_up('auto', robust='auto', path='b.csv', **own)]) == {'auto':None}
    assert result_table([known,made_up(acc=.7, path='a.csv', seed=1, **own)]).runs.tolist() == ['2'] # an older run of the same file
    for other in (dict(label_col='truth'), dict(split_seed=7)): # other labels, or other validation images, of one file
        assert result_table([a,made_up(acc=.1, path='a.csv', seed=1, **other, **own)])['final epoch'].tolist() == ['90.0','10.0']

def test_compute_of_rotations_alone_counts_each_step():
    kw = dict(arch='xresnet10_half', size=32, bs=32, epochs=4, every=4)
    assert (run_cost(kw),run_cost({**kw, 'rot_only':2}),run_cost({**kw, 'epochs':0})) == (5,6.5,0)

def test_a_broken_record_of_a_study_is_told(tmp_path):
    o = made_up()
    runs = {'x':o['config']}
    (tmp_path/'x').mkdir()
    o['config'] = resolved(o['config'])
    del o['device']
    (tmp_path/'x/record.json').write_text(json.dumps(o))
    with pytest.raises(InputError, match='not a record of a run, or a broken one'): study_records(runs, tmp_path)

def test_runs_in_linked_folders_count(tmp_path):
    for k in ('all/a','far/b'):
        (tmp_path/k).mkdir(parents=True)
        (tmp_path/k/'record.json').write_text(json.dumps(made_up(seed=len(k))))
    (tmp_path/'all/link').symlink_to(tmp_path/'far/b')
    (tmp_path/'all/.._pics').symlink_to(tmp_path/'far/c') # as a study names a run on a folder beside it
    (tmp_path/'far/c').mkdir()
    (tmp_path/'far/c/record.json').write_text(json.dumps(made_up(seed=9)))
    (tmp_path/'all/a/up').symlink_to(tmp_path/'all') # which would go round for ever
    assert [o.relative_to(tmp_path) for o in find_records(tmp_path/'all')] == [Path('all/.._pics'),Path('all/a'),Path('all/link')]

def test_folders_whose_names_are_no_utf8(tmp_path):
    for i,k in enumerate(('none','u\udcff')):
        (tmp_path/f'{i}').mkdir()
        (tmp_path/f'{i}/record.json').write_text(json.dumps(made_up(unlabeled=k)))
    env = {**os.environ, 'PYTHONIOENCODING':'utf-8:strict'} # as in the locale en_US.UTF-8
    for command in ('sesemi-table','sesemi-report'):
        res = subprocess.run([str(BIN/command), str(tmp_path)], capture_output=True, text=True, env=env)
        assert res.returncode == 0, res.stderr
