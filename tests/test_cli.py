"The commands as a user types them"
import contextlib, inspect, io, json, os, pty, shutil, signal, subprocess, sys, time, zipfile
from pathlib import Path
import pandas as pd, torch
from types import SimpleNamespace
import pytest
from fastcore.script import anno_parser
from sesemi_fastai import cli, experiment
from sesemi_fastai.core import InputError, image_files
from sesemi_fastai.mini import make_mini
from sesemi_fastai.table import method_name

BIN = Path(sys.executable).parent

def typed(*args):
    "A command in a process of its own"
    return subprocess.run([BIN/args[0], *map(str, args[1:])], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS':'1'})

def run(cmd, *args):
    "The same without the seconds that an import takes: its parser, its function, its output and exit status"
    func,out,err,status = inspect.unwrap(getattr(cli, cmd.replace('-','_'))),io.StringIO(),io.StringIO(),0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as mp:
        mp.setattr(sys, 'argv', [cmd])
        try:
            kw = vars(anno_parser(func, prog=cmd).parse_args([str(o) for o in args]))
            func(**{k:v for k,v in kw.items() if k not in ('pdb','xtra')})
        except SystemExit as e: status = e.code
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())

@pytest.fixture(scope='module')
def mini(tmp_path_factory): return make_mini(tmp_path_factory.mktemp('cli')/'mini', 120, 20)

small = '--size 32 --arch xresnet18 --bs 16 --workers 0'.split()

def test_train_ends_with_its_record(mini, tmp_path):
    res = typed('sesemi-train', '--path', mini, '--noise', 50, '--epochs', 2, '--unlabeled', 'all', '--export', '--out', tmp_path/'x', *small)
    assert res.returncode == 0, res.stderr
    record = json.loads(res.stdout.splitlines()[-1])
    assert record == json.loads((tmp_path/'x/record.json').read_text())
    assert record['status'] == 'done' and record['method'] == 'SESEMI' and record['transductive'] is True
    assert record['images'] == 2*7*(16+16) and record['labelled_passes'] == pytest.approx(2*112/120, abs=1e-3)
    assert [set(h) for h in record['history']] == [{'epoch','train_loss','valid_loss','accuracy','rot_loss','rot_acc','rot_weight','as_given',
        'wrong_as_true','wrong_as_given','changed','labelled_passes','images','images_by_area','seconds'}]*2
    assert record['accuracy'] == record['history'][-1]['accuracy'] and record['best_accuracy'] == max(h['accuracy'] for h in record['history'])
    for k in ('seconds','images_per_second','device','threads','started'): assert record[k]
    assert set(record['versions']) == {'python','torch','torchvision','fastai','fastcore','sesemi_fastai'} and all(record['versions'].values())
    assert 'commit' in record
    config = record['config']
    assert config['lr'] == 8e-3 and config['path'] == 'mini' and config['noise'] == 50 and config['opt'] == 'ranger' and config['seed'] == 0
    assert (tmp_path/'x/export.pkl').stat().st_size > 1e6

def last(res): return json.loads(res.stdout.splitlines()[-1])

@pytest.mark.parametrize('opt,sched', [('sgd','poly'), ('adam','flat_cos')])
def test_every_optimizer_and_schedule(mini, opt, sched):
    res = run('sesemi-train', '--path', mini, '--epochs', 1, '--opt', opt, '--sched', sched, *small)
    assert res.returncode == 0, res.stderr
    assert last(res)['config']['opt'] == opt and 'epoch 1/1: ' in res.stdout and 'left' in res.stdout

def test_method_and_transductive_are_what_happened(mini, tmp_path):
    named = tmp_path/'none'
    named.symlink_to(mini/'train')
    for unlabeled,method,transductive,n in [('none','plain',False,0), ('train','SESEMI',False,120), ('all','SESEMI',True,140),
                                            (mini/'val','SESEMI',True,20), (str(named)+'/.','SESEMI',False,120)]:
        record = last(res := run('sesemi-train', '--path', mini, '--epochs', 1, '--unlabeled', unlabeled, *small))
        assert ('the rotation task sees them' in res.stderr) == (unlabeled == mini/'val')
        assert (record['method'],record['transductive'],record['unlabeled_images']) == (method,transductive,n), unlabeled
        assert ('rot_acc' in record['history'][0]) == (method == 'SESEMI')

@pytest.mark.cell('Accumulation and mixing', 'sesemi-train --mixup and --smoothing: names, tables, with robust losses and rotations, export, resume')
def test_label_smoothing_and_mixup_are_methods(mini, tmp_path):
    def go(*args): return last(run('sesemi-train', '--path', mini, '--epochs', 1, '--out', tmp_path/'o'/'-'.join(args), *small, *args))
    plain,smooth,mixed = (go('--unlabeled', 'none', *o) for o in ((), ('--smoothing','.1'), ('--mixup','.4')))
    assert [o['method'] for o in (plain,smooth,mixed)] == ['plain','label smoothing','MixUp']
    losses = [o['history'][0]['train_loss'] for o in (plain,smooth,mixed)]
    assert len({*losses}) == 3 and mixed['images'] == plain['images']
    assert go('--mixup', '.4', '--robust', 'elr', '--export')['method'] == 'ELR + MixUp + SESEMI'
    table = run('sesemi-table', tmp_path/'o').stdout
    assert 'against plain, equal passes' in table and ' mixup ' not in table # each is compared with plain training, and needs no column of its own
    code = "import sys; from fastai.vision.all import *; l = load_learner(sys.argv[1]); assert not any(o.startswith('sesemi') for o in sys.modules)"
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code, tmp_path/'o/--mixup-.4---robust-elr---export/export.pkl'], check=True)

def test_runs_of_before_mixup_and_of_its_numbers(mini, tmp_path):
    "A run that an earlier version began goes on; a whole number is one; a run that had all its steps ends; older names mean what they meant"
    kw = dict(path=str(mini), dataset='own', noise=0, size=32, arch='xresnet18', bs=16, workers=0, epochs=2, unlabeled='none', bar=False)
    end = lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt)
    def stopped(out, **more):
        with pytest.MonkeyPatch.context() as mp:
            mp.setattr(experiment, '_leave_results', end)
            with pytest.raises(KeyboardInterrupt): experiment.train_run(out=str(out), **kw, **more)
    stopped(tmp_path/'a')
    for o in (tmp_path/'a/checkpoints').glob('*.pth'):
        state = torch.load(o, weights_only=True)
        assert state['config'].pop('mixup') == 0
        torch.save(state, o)
    assert experiment.resume_run(tmp_path/'a', bar=False)['method'] == 'plain'
    stopped(tmp_path/'b', mixup=8, max_steps=3)
    assert experiment.resume_run(tmp_path/'b', bar=False)['method'] == 'MixUp 8'
    for wrong in dict(mixup=1e-9), dict(mixup=.4, bs=1):
        with pytest.raises(InputError, match='mixup'): experiment.train_run(**{**kw, **wrong})
    old = dict(json.loads((tmp_path/'a/record.json').read_text()), method='SESEMI')
    assert method_name(old) == 'SESEMI' and method_name({**old, 'config':{**old['config'], 'smoothing':.1}}) == 'label smoothing + SESEMI'

@pytest.mark.parametrize('args,note', [(['--unlabeled','none','--every','2'], 'note: --every changes nothing in this run\n'),
    (['--unlabeled','none','--turns','one','--weight','.5'], 'note: --weight, --turns change nothing in this run\n'), (['--turns','one'], ''),
    (['--unlabeled','none','--robust','auto'], 'note: --robust changes nothing in this run\n')])
def test_an_option_that_changes_nothing_is_told(mini, args, note):
    res = run('sesemi-train', '--path', mini, '--epochs', 1, *small, *args)
    told,last = res.stderr[:res.stderr.index('validation accuracy')],res.stderr.splitlines()[-1]
    assert res.returncode == 0 and told == note
    assert last.startswith('validation accuracy') and last.endswith('after the best epoch; nothing else is kept without --out')

def test_a_run_that_is_there_twice_counts_once(mini, tmp_path):
    assert run('sesemi-train', '--path', mini, '--epochs', 1, '--unlabeled', 'none', '--out', tmp_path/'o/a', *small).returncode == 0
    assert 'not counted' not in run('sesemi-table', tmp_path/'o').stdout
    shutil.copytree(tmp_path/'o/a', tmp_path/'o/b')
    assert '1 with the settings and seed of another is not counted.' in ' '.join(run('sesemi-table', tmp_path/'o').stdout.split()) # lines break by the CPU's name

def test_same_seed_same_record(mini, tmp_path):
    def history(*args):
        res = run('sesemi-train', '--path', mini, '--epochs', 1, *args, *small)
        return [{k:v for k,v in h.items() if k != 'seconds'} for h in last(res)['history']]
    assert history('--seed', 1) == history('--seed', 1) != history('--seed', 2)
    assert 'rot_loss' not in history('--unlabeled', 'none')[0]

@pytest.mark.parametrize('args,words', [
    (['--path','/no/such/folder'], 'there is no folder'), (['--noise','7'], 'choose one of 0, 1, 5, 25, 50'),
    (['--arch','resnet19'], "'resnet19'"), (['--opt','lion'], 'choose one of sgd, adam, ranger'), (['--sched','step'], 'choose one of one_cycle'),
    (['--dataset','cifar'], 'choose one of nette'), (['--dataset','wang','--noise','5'], 'no published noisy labels'),
    (['--unlabeled','/no/such/folder'], 'choose none, train, all'), (['--unlabeled','EMPTY'], 'no images below'),
    (['--bs','1000'], 'do not fill one batch'), (['--epochs','0'], 'from 1 to'), (['--weight','-1'], 'from 0 to'), (['--weight','nan'], 'from 0 to'),
    (['--lr','nan'], 'give a number'), (['--seed','99999999999999'], 'from 0 to'), (['--arch','alexnet'], 'cannot take images of 32 pixels'),
    (['--arch','googlenet','--size','64'], 'more than class scores'), (['--export-weights','onnx','--out','OUT'], 'choose pth or safetensors'),
    (['--path','ZIP','--dataset','own'], 'not a CSV file'),
    (['--bn','both'], "choose separate or joint"), (['--unlabeled-bs','500'], 'do not fill one batch'), (['--export'], 'needs --out'),
    (['--lr','-1'], 'give a number'), (['--mixup','-1'], 'give 0, or a number from 0.01'), (['--workers','-1'], 'from 0 to'),
    (['--mixup','.4','--robust','fixmatch'], 'fixmatch needs unmixed images: give mixup 0'), (['--features','nowhere'], "no module 'nowhere'"),
    (['--dataset','own','--path','CSV'], "no column 'label'"), (['--path','CSV'], '--dataset own reads a table'),
    (['--dataset','own','--path','MINI','--valid-fold','0'], 'belongs to a table'),
    (['--valid-fold','0'], 'belongs to --dataset own'), (['--lr','fast'], 'invalid float value')],
    ids=lambda o: ' '.join(o) if isinstance(o, list) else '')
def test_wrong_input_is_one_line_and_status_2(mini, tmp_path, args, words):
    (tmp_path/'empty').mkdir()
    (tmp_path/'t.csv').write_text('path,class\na.png,x\n')
    with zipfile.ZipFile(tmp_path/'photos.zip', 'w') as z: z.writestr('a', 'x'); z.writestr('b', 'y')
    args = [{'EMPTY':tmp_path/'empty', 'CSV':tmp_path/'t.csv', 'ZIP':tmp_path/'photos.zip', 'OUT':tmp_path/'o', 'MINI':mini/'train'}.get(o, o) for o in args]
    res = run('sesemi-train', '--path', mini, *small, *args)
    assert res.returncode == 2 and words in res.stderr and 'Traceback' not in res.stderr
    if 'usage:' not in res.stderr: assert len(res.stderr.strip().splitlines()) == 1 and res.stderr.startswith('sesemi-train: ')

def test_typed_mistakes(mini):
    for args,words in [(['--noise','7'], 'choose one of 0, 1, 5, 25, 50'), (['--lr','fast'], 'invalid float value')]:
        res = typed('sesemi-train', '--path', mini, *small, *args)
        assert res.returncode == 2 and words in res.stderr and 'Traceback' not in res.stderr
        if 'usage:' not in res.stderr: assert len(res.stderr.strip().splitlines()) == 1

def test_an_output_folder_that_cannot_be(mini, tmp_path):
    (tmp_path/'file').write_text('')
    res = run('sesemi-train', '--path', mini, '--epochs', 1, '--out', tmp_path/'file'/'x', *small)
    assert res.returncode == 2 and len(res.stderr.strip().splitlines()) == 1

@pytest.mark.parametrize('sig,status', [(signal.SIGINT,130), (signal.SIGTERM,143), (signal.SIGKILL,-9)])
def test_interrupted_run_keeps_its_epochs(mini, tmp_path, sig, status):
    p = subprocess.Popen([BIN/'sesemi-train', '--path', mini, '--epochs', '200', '--out', tmp_path/'x', *small], stderr=subprocess.PIPE,
                         stdout=subprocess.DEVNULL, text=True,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) # a shell ignores Ctrl-C for what it runs in the background
    fname = tmp_path/'x/record.json'
    for _ in range(600):
        time.sleep(.2)
        if fname.exists(): break
    time.sleep(.5)
    p.send_signal(sig)
    err = p.communicate(timeout=60)[1]
    assert p.returncode == status and 'Traceback' not in err
    what = 'terminated' if sig == signal.SIGTERM else 'interrupted'
    assert sig == signal.SIGKILL or err == f"sesemi-train: {what}; go on with sesemi-train --resume {tmp_path/'x'}\n"
    record = json.loads(fname.read_text())
    assert record['status'] == ('running' if sig == signal.SIGKILL else 'interrupted') and len(record['history']) >= 1
    assert list(fname.parent.glob('.record*')) == [] or sig == signal.SIGKILL

def test_sigterm_reaches_worker_processes_as_ever(mini, tmp_path):
    p = subprocess.Popen([BIN/'sesemi-train', '--path', mini, '--epochs', '200', '--out', tmp_path/'x', *small, '--workers', '2', '--no-bar'],
                         stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    first = next(p.stdout)
    for line in p.stdout:
        if line.startswith('epoch 1/'): break
    p.send_signal(signal.SIGTERM)
    assert first.startswith('training on 120 images of 10 classes, 20 for validation, 200 epochs of ')
    out,err = p.communicate(timeout=60)
    assert p.returncode == 143 and err == f"sesemi-train: terminated; go on with sesemi-train --resume {tmp_path/'x'}\n" and 'Traceback' not in out

def test_a_slow_start_is_told_to_who_waits(tmp_path):
    (tmp_path/'sitecustomize.py').write_text("import sys, time\nclass Slow:\n    def find_spec(self, name, *args):\n        if name == "
        "'fastcore': time.sleep(6)\nsys.meta_path.insert(0, Slow())\n")
    ours,theirs = pty.openpty()
    p = subprocess.Popen([BIN/'sesemi-data', '--help'], stderr=theirs, stdout=subprocess.DEVNULL,
                         env={**os.environ, 'PYTHONPATH':os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')])})
    assert p.wait(120) == 0 and os.read(ours, 1000).decode().splitlines() == ['loading PyTorch and fastai']

def test_a_refused_run_leaves_no_new_folder(mini, tmp_path):
    bad = shutil.copytree(mini, tmp_path/'bad')
    image_files(bad)[0].write_bytes(b'no image')
    assert run('sesemi-train', '--path', bad, *small, '--out', tmp_path/'x').returncode == 2 and not (tmp_path/'x').exists()
    (tmp_path/'mine').mkdir()
    assert run('sesemi-train', '--path', bad, *small, '--out', tmp_path/'mine').returncode == 2 and (tmp_path/'mine').exists()

def test_what_shall_be_pasted_is_quoted(mini, tmp_path, monkeypatch):
    def stopped(**kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(cli, 'train_run', stopped)
    res = run('sesemi-train', '--path', mini, '--out', tmp_path/'my runs')
    assert res.returncode == 130 and res.stderr == f"sesemi-train: interrupted; go on with sesemi-train --resume '{tmp_path}/my runs'\n"

def test_ctrl_c_while_fastai_is_imported(mini):
    p = subprocess.Popen([sys.executable, '-X', 'importtime', BIN/'sesemi-train', '--path', mini], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    for line in p.stderr:
        if 'numpy' in line: break # the first modules that the command needs are there
    p.send_signal(signal.SIGINT)
    told = [o for o in p.stderr if not o.startswith('import time')]
    assert p.wait(60) in (-signal.SIGINT,130) and told[-1] == 'sesemi-train: interrupted\n' and not any('Traceback' in o for o in told)

def test_places_that_cannot_be_written_to(mini, tmp_path):
    (tmp_path/'file').write_text('')
    (tmp_path/'full').mkdir()
    (tmp_path/'full/letter.txt').write_text('')
    for args,says in {('sesemi-train','--path',mini,'--out',tmp_path/'file',*small):'a file is in the way',
                      ('sesemi-demo','--out',tmp_path/'full'):'holds letter.txt',
                      ('sesemi-demo','--out',tmp_path/'new','--seeds','x'):'--seeds x', ('sesemi-demo','--out',tmp_path/'new','--epochs',0):'epochs=0',
                      ('sesemi-bench','scale','--out',tmp_path/'full'):'is a folder',
                      ('sesemi-train','--dataset','mini','--path',tmp_path/'full',*small):'sesemi-data mini --out',
                      ('sesemi-table',tmp_path/'nowhere'):'there is no folder', ('sesemi-data','scan','--path',tmp_path/'full'):'no images'}.items():
        res = run(*args)
        assert res.returncode == 2 and says in res.stderr and len(res.stderr.strip().splitlines()) == 1, (args,res.stderr)
    assert not (tmp_path/'new').exists()

def test_batches_of_one_image(mini, tmp_path):
    for args in (['--bs',1], ['--unlabeled-bs',1,'--turns','one']):
        res = run('sesemi-train', '--path', mini, '--size', 32, '--arch', 'xresnet18', '--workers', 0, '--epochs', 1, *args)
        assert res.returncode == 2 and 'more than 1 value per channel' in res.stderr, res.stderr
    assert run('sesemi-data', 'mini', '--out', tmp_path/'m', '--seed', -1).stderr.count('\n') == 1
    assert 'is one with rotations' in run('sesemi-compare', tmp_path/'c', '--path', mini, '--unlabeled', 'none', *small).stderr

def test_nobody_knows_how_many_own_labels_are_wrong(mini, tmp_path):
    "No percentage, no columns about wrong labels, and another split if one is asked for"
    own = ['sesemi-train', '--dataset', 'own', '--path', mini/'train', '--epochs', 1, '--unlabeled', 'none', *small]
    one,two = (last(run(*own, '--split-seed', o, '--out', tmp_path/f'runs/{o}')) for o in (0,1))
    assert one['config']['split_seed'] == 0 and two['overrides']['split_seed'] == 1 and 'wrong_as_given' not in one['history'][0]
    assert 'as_given' in one['history'][0]
    assert not pd.read_csv(tmp_path/'runs/0/predictions.csv').path.equals(pd.read_csv(tmp_path/'runs/1/predictions.csv').path)
    table = run('sesemi-table', tmp_path/'runs', '--report', tmp_path/'r.html').stdout
    html = (tmp_path/'r.html').read_text()
    assert '–' in table and '0%' not in table and 'own labels' in html and '0% wrong' not in html
    res = run('sesemi-train', '--path', mini, '--split-seed', 1, *small)
    assert res.returncode == 2 and 'belongs to --dataset own' in res.stderr

def test_a_network_of_an_earlier_run_is_told(mini, tmp_path):
    args = ['sesemi-train', '--path', mini, '--epochs', 1, '--out', tmp_path/'o', *small]
    assert 'not of this run' not in run(*args, '--export').stderr
    (tmp_path/'o/record.json').unlink()
    res = run(*args, '--seed', 1)
    assert res.returncode == 0 and res.stderr.count(f"{tmp_path/'o/export.pkl'} is not of this run") == 1, res.stderr

def test_a_table_with_names_of_its_own(mini, tmp_path):
    "Columns, and what names lack of paths, as the errors say them; the same images and the same training as from a table with usual names"
    shutil.copytree(mini/'train', tmp_path/'dogs/train')
    files = sorted((tmp_path/'dogs/train').rglob('*.JPEG'))
    df = pd.DataFrame(dict(id=[str(f.relative_to(tmp_path/'dogs/train').with_suffix('')) for f in files], breed=[f.parent.name for f in files],
                           part=['valid' if i % 4 == 0 else 'train' for i in range(len(files))]))
    df.to_csv(tmp_path/'dogs/labels.csv', index=False)
    df.assign(path='train/'+df.id+'.JPEG', label=df.breed, is_valid=df.part)[['path','label','is_valid']].to_csv(tmp_path/'dogs/usual.csv', index=False)
    own = ['sesemi-train', '--dataset', 'own', '--epochs', 1, *small, '--path']
    assert 'fn_col, label_col and valid_col name' in run(*own, tmp_path/'dogs/labels.csv').stderr
    columns = ['--fn-col', 'id', '--label-col', 'breed', '--valid-col', 'part']
    assert '--pref=train/ --suff=.JPEG' in run(*own, tmp_path/'dogs/labels.csv', *columns).stderr
    assert 'holds train, valid' in run(*own, tmp_path/'dogs/labels.csv', *columns, '--pref', 'train/', '--suff', '.JPEG', '--valid-fold', 'f9').stderr
    assert 'valid_pct=2' in run(*own, tmp_path/'dogs/labels.csv', *columns, '--valid-pct', 2).stderr
    one = last(run(*own, tmp_path/'dogs/labels.csv', *columns, '--pref', 'train/', '--suff', '.JPEG', '--valid-fold', 'valid', '--out', tmp_path/'runs/one'))
    two = last(run(*own, tmp_path/'dogs/usual.csv', '--out', tmp_path/'runs/two'))
    one_epoch,other = ({k:v for k,v in o['history'][0].items() if k != 'seconds'} for o in (one,two))
    assert one_epoch == other
    assert one['data']['digest'] == two['data']['digest'] and one['overrides']['suff'] == '.JPEG' and 'suff' not in two['overrides']
    table = run('sesemi-table', tmp_path/'runs').stdout
    assert '1 with the settings and seed of another is not counted' in ' '.join(table.split()) and 'suff' not in table
    assert 'A rotated batch' in Path(run('sesemi-report', tmp_path/'runs', '--path', tmp_path/'dogs').stdout.strip()).read_text()
    res = run('sesemi-train', '--path', mini, '--label-col', 'breed', *small)
    assert res.returncode == 2 and 'label_col belongs to --dataset own' in res.stderr

def test_compare_trains_only_what_is_missing(mini, tmp_path):
    args = ['sesemi-compare', tmp_path/'c', '--path', mini, '--noise', 5, '--seeds', '0', '--epochs', 1, *small]
    assert run(*args).returncode == 0
    files = sorted((tmp_path/'c').rglob('record.json'))
    assert [f.parent.name for f in files] == ['plain-1ep-seed0','plain_compute-2ep-seed0','sesemi-1ep-seed0']
    images = {f.parent.name.split('-')[0]: json.loads(f.read_text())['images'] for f in files}
    assert images['sesemi'] == images['plain_compute'] == 2*images['plain']
    files[1].write_text('{"status":')
    times = [f.stat().st_mtime_ns for f in files]
    assert run(*args).stdout.count('seed0') == 1
    assert [f.stat().st_mtime_ns == t for f,t in zip(files, times)] == [True,False,True]
    res = run('sesemi-table', tmp_path/'c', '--report', tmp_path/'r.html', '--plot', tmp_path/'p.png')
    assert res.returncode == 0 and 'SESEMI' in res.stdout and '5%' in res.stdout
    assert 'data:image/png' in (tmp_path/'r.html').read_text() and (tmp_path/'p.png').stat().st_size > 1000
    assert run('sesemi-table', tmp_path).returncode == 0
    res = run('sesemi-table', tmp_path/'c', '--plot', tmp_path/'p.foo')
    assert res.returncode == 2 and 'p.foo cannot be written' in res.stderr
    res = run('sesemi-table', mini)
    assert res.returncode == 2 and 'no finished record' in res.stderr

def test_data_command(mini, tmp_path):
    res = run('sesemi-data', 'noisy', '--path', mini, '--out', tmp_path, '--link', 'symlink')
    assert res.returncode == 0 and [Path(o).name for o in res.stdout.split()] == ['noisy5','noisy50']
    assert len(list((tmp_path/'noisy50/train').rglob('*.JPEG'))) == 120
    assert run('sesemi-data', 'noisy', '--path', mini, '--out', tmp_path, '--link', 'symlink').returncode == 0
    res = run('sesemi-data', 'mini', '--out', tmp_path/'m', '--train', 20, '--valid', 10)
    assert res.returncode == 0 and len(list((tmp_path/'m').rglob('*.JPEG'))) == 30
    for args in (['noisy'], ['mini'], ['other'], ['noisy','--path',mini,'--noise','x'], ['noisy','--path',mini,'--link','soft'], ['mini','--out',tmp_path]):
        res = run('sesemi-data', *args)
        assert res.returncode == 2 and len(res.stderr.strip().splitlines()) == 1, args

@pytest.mark.parametrize('cmd', ['sesemi-train','sesemi-compare','sesemi-table','sesemi-data','sesemi-demo'])
def test_help_explains_every_option(cmd):
    res = run(cmd, '--help')
    assert res.returncode == 0
    options = [o for o in res.stdout.split('options:')[1].replace('\n                        ', ' ').splitlines() if o.startswith('  --')]
    assert options and all(len(o.split('  ', 2)[-1].strip()) > 8 for o in options)
