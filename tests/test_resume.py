"A run that ends early goes on as if nothing had happened"
import json, os, random, re, shutil, subprocess, sys
from functools import partial
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import (Adam, Callback, CancelFitException, CategoryBlock, DataBlock, EarlyStoppingCallback, ImageBlock, IndexSplitter,
    CSVLogger, GradientAccumulation, ImageDataLoaders,
    LabelSmoothingCrossEntropyFlat, MixUp, OptimWrapper, ProgressCallback, ReduceLROnPlateau, Resize, SaveModelCallback, SGD, accuracy,
    Learner, nn, ranger, resnet18, get_image_files, vision_learner, xresnet18)
from sesemi_fastai.optim import ranger_fused
from sesemi_fastai.callback import SESEMI
from sesemi_fastai.checkpoint import Checkpoint, FiniteLoss, checkpoint_files
from sesemi_fastai.core import InputError, RunStopped
from sesemi_fastai.data import noisy_table, table_dls
from sesemi_fastai.mini import make_mini, mini_dls
from sesemi_fastai.labels import LabelReport
from sesemi_fastai.losses import ELR
from sesemi_fastai.robust import RobustLoss
from sesemi_fastai.steps import StepsPerEpoch
from test_callback import Quiet, fit, traces, CLEAN
from test_cli import run, small

@pytest.fixture(scope='module')
def mini(tmp_path_factory): return make_mini(tmp_path_factory.mktemp('resume')/'mini', 120, 20)

@pytest.mark.cell('Resume', 'a run killed with SIGKILL at random moments, while a checkpoint is written as well, ends with the same weights, bit for bit')
def test_killed_again_and_again():
    "In a process of its own, which forks before it has threads; make torture kills more often"
    res = subprocess.run([sys.executable, Path(__file__).parent/'kill.py', '4', '1'], capture_output=True, text=True, timeout=300)
    assert res.returncode == 0 and '4 kills with SIGKILL' in res.stdout, res.stdout+res.stderr

class Crash(Callback):
    order = 2
    def before_batch(self):
        if self.training and self.epoch == 2 and self.iter == 3: raise KeyboardInterrupt

torch_sgd = partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=.9, nesterov=True))
torch_adam = partial(OptimWrapper, opt=torch.optim.AdamW)

@pytest.mark.cell('Resume', 'SGD, Adam, ranger, ranger_fused, torch SGD-Nesterov, torch AdamW; both BatchNorm modes; loader workers; '
                            'MixUp; gradient accumulation; bf16')
@pytest.mark.parametrize('kwargs',
    [dict(opt_func=SGD), dict(opt_func=Adam), dict(opt_func=ranger), dict(opt_func=ranger_fused), dict(opt_func=torch_sgd), dict(opt_func=torch_adam),
    dict(bn='joint'), dict(precision='bf16', opt_func=ranger), dict(workers=1), dict(cbs=[MixUp]), dict(cbs=[partial(GradientAccumulation, 16)]),
    dict(cbs=[partial(GradientAccumulation, 40)]), dict(precision='bf16'),
    dict(form=dict(turns='one', every=3)), dict(form=dict(unlabeled='batch')), dict(form=dict(size=24, rot_only=1)), dict(cbs=[partial(StepsPerEpoch, 11)])],
    ids=['SGD','Adam','ranger','ranger_fused','torch SGD','torch AdamW','joint','ranger in bf16','workers','MixUp','accumulation',
    'accumulation over the end','bf16','one turn, every third step','own batch','smaller, rotations first','epochs of 11 steps'])
def test_resumed_is_uninterrupted(make_learn, tmp_path, kwargs):
    kwargs = dict(kwargs)
    bn,workers,cbs,precision,form = kwargs.pop('bn', 'separate'),kwargs.pop('workers', None),kwargs.pop('cbs', []),kwargs.pop('precision',
        'fp32'),kwargs.pop('form', {})
    def new(): return make_learn(cbs=[SESEMI(bn=bn, num_workers=workers, rampup=3, **form), *(f() for f in cbs)], **kwargs).to_precision(precision)
    def go(learn, *cbs):
        with Quiet(learn): learn.fit_one_cycle(4, .01, cbs=cbs)
        return learn
    whole = go(new())
    with pytest.raises(KeyboardInterrupt): go(new(), Checkpoint(tmp_path/'c'), Crash())
    resumed = go(new(), Checkpoint(tmp_path/'c', resume=True))
    for (k,a),b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values()): assert torch.equal(a, b), k
    assert whole.recorder.values == resumed.recorder.values and whole.recorder.losses == resumed.recorder.losses
    assert traces(resumed) == CLEAN

class Late(Callback):
    "Ctrl-C in the sixth epoch"
    order = 2
    def before_batch(self):
        if self.training and self.epoch == 5: raise KeyboardInterrupt

@pytest.mark.cell('Resume', 'SaveModelCallback, EarlyStoppingCallback, ReduceLROnPlateau go on where they were; no callback sees an epoch twice')
@pytest.mark.parametrize('make', [lambda: SaveModelCallback('accuracy', fname='best'), lambda: SaveModelCallback(fname='m', every_epoch=True),
    lambda: EarlyStoppingCallback('accuracy', patience=3), lambda: ReduceLROnPlateau('accuracy', comp=np.greater, min_delta=2, patience=2, factor=10)],
    ids=['best','every epoch','stop','plateau'])
def test_trackers_go_on(make_learn, tmp_path, make):
    class Epochs(Callback):
        def before_fit(self): self.seen = []
        def after_epoch(self): self.seen.append(self.epoch)
    def go(folder, *cbs):
        learn = make_learn(cbs=SESEMI())
        learn.model_dir = folder
        cb,epochs = make(),Epochs()
        with Quiet(learn): learn.fit(8, .01, cbs=[cb, epochs, *cbs])
        files = {f.name:torch.load(f, weights_only=True) for f in (tmp_path/folder).glob('*.pth')}
        return learn,{k:v for k,v in vars(cb).items() if k in ('best','wait')},files,epochs.seen
    whole = go('a')
    with pytest.raises(KeyboardInterrupt): go('b', Checkpoint(tmp_path/'c'), Late())
    resumed = go('b', Checkpoint(tmp_path/'c', resume=True))
    assert whole[1] == resumed[1] and len(whole[0].recorder.values) == len(resumed[0].recorder.values)
    assert whole[2].keys() == resumed[2].keys() and resumed[3] == whole[3][5:]
    for a,b in [(whole[0].model.state_dict(),resumed[0].model.state_dict()), *((whole[2][k],resumed[2][k]) for k in whole[2])]:
        assert all(torch.equal(x, y) for x,y in zip(a.values(), b.values()))

def test_two_trackers_of_one_kind(make_learn, tmp_path):
    def bests(*more):
        cbs = [SaveModelCallback('valid_loss', fname='a'), SaveModelCallback('train_loss', fname='b')]
        fit(make_learn(), 4, cbs=[*cbs, *more])
        return [cb.best for cb in cbs]
    whole = bests()
    with pytest.raises(KeyboardInterrupt): bests(Checkpoint(tmp_path/'c'), Crash())
    assert bests(Checkpoint(tmp_path/'c', resume=True)) == whole

def test_fewer_checkpoints(make_learn, tmp_path):
    "With every=2 and keep=1 a crash in the sixth epoch costs that one and the fifth stays to be done again"
    whole = fit(make_learn(cbs=SESEMI()), 7)
    with pytest.raises(KeyboardInterrupt): fit(make_learn(cbs=SESEMI()), 7, cbs=[Checkpoint(tmp_path/'c', every=2, keep=1), Late()])
    assert [o.name for o in checkpoint_files(tmp_path/'c')] == ['fit-1-epoch-0004.pth']
    resumed = fit(make_learn(cbs=SESEMI()), 7, cbs=Checkpoint(tmp_path/'c', resume=True, every=2, keep=1))
    assert all(torch.equal(a, b) for a,b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values()))
    assert [o.name for o in checkpoint_files(tmp_path/'c')] == ['fit-1-epoch-0007.pth']

@pytest.mark.cell('Resume', 'several fits with one Checkpoint, such as fine_tune: each goes on by itself')
@pytest.mark.parametrize('epoch,rotations', [(0,False),(1,False),(0,True)])
def test_several_fits(make_dls, tmp_path, epoch, rotations):
    def new():
        torch.manual_seed(0)
        dls = make_dls()
        learn = vision_learner(dls, resnet18, pretrained=False, metrics=accuracy, path=tmp_path, cbs=[SESEMI(bs=2)]*rotations)
        learn.remove_cbs([cb for cb in learn.cbs if cb.name == 'progress'])
        random.seed(0); torch.manual_seed(0); np.random.seed(0)
        return learn
    class InSecond(Callback):
        def before_fit(self): self.n = getattr(self, 'n', 0)+1
        def before_batch(self):
            if self.training and self.n == 2 and self.epoch == epoch and self.iter == 2: raise KeyboardInterrupt
    def go(*cbs):
        learn = new()
        with Quiet(learn): learn.fine_tune(3, cbs=list(cbs))
        return learn
    whole = go()
    with pytest.raises(KeyboardInterrupt): go(Checkpoint(tmp_path/'c'), InSecond())
    resumed = go(Checkpoint(tmp_path/'c', resume=True))
    assert all(torch.equal(a, b) for a,b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values()))
    assert len(checkpoint_files(tmp_path/'c', 1)) == 1 and len(checkpoint_files(tmp_path/'c', 2)) == 2
    with pytest.raises(InputError, match='holds checkpoints of an earlier run'): go(Checkpoint(tmp_path/'c'))

def test_a_fit_begun_again_keeps_its_own_checkpoints(make_learn, tmp_path):
    "Those of an attempt that was left further on would be taken for its newest"
    learn = make_learn(cbs=Checkpoint(tmp_path/'c'))
    fit(learn)
    with pytest.raises(KeyboardInterrupt): fit(learn, 8, cbs=Late())
    assert [o.stem for o in checkpoint_files(tmp_path/'c', 2)] == ['fit-2-epoch-0005','fit-2-epoch-0004']
    with pytest.raises(KeyboardInterrupt): fit(learn, 8, cbs=Crash())
    assert [o.stem for o in checkpoint_files(tmp_path/'c', 2)] == ['fit-2-epoch-0002','fit-2-epoch-0001']
    assert len(checkpoint_files(tmp_path/'c', 1)) == 1

def test_gradients_that_were_zeros_are_zeros(make_learn, tmp_path):
    "In the second fit the label head has none of its own at first, and decays where it has zeros"
    def go(*cbs):
        learn = make_learn(cbs=SESEMI(rot_only=1.5), opt_func=Adam)
        for n in (2,4):
            with Quiet(learn): learn.fit(n, .01, cbs=cbs)
        return learn
    class InSecond(Crash):
        def before_batch(self):
            if self.n_epoch == 4 and self.training and self.epoch == 1 and self.iter == 2: raise KeyboardInterrupt
    whole = go()
    with pytest.raises(KeyboardInterrupt): go(Checkpoint(tmp_path/'c'), InSecond())
    resumed = go(Checkpoint(tmp_path/'c', resume=True))
    for (k,a),b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values()): assert torch.equal(a, b), k

def test_gradients_of_an_interrupted_step_are_gone(make_learn, tmp_path):
    "Where the same Learner goes on"
    def new(): return make_learn(cbs=GradientAccumulation(16), opt_func=ranger)
    def go(learn, *cbs):
        with Quiet(learn): learn.fit_one_cycle(4, .01, cbs=cbs)
        return learn
    whole,learn = go(new()),new()
    with pytest.raises(KeyboardInterrupt): go(learn, Checkpoint(tmp_path/'c'), Crash())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in learn.model.parameters())
    go(learn, Checkpoint(tmp_path/'c', resume=True))
    for (k,a),b in zip(whole.model.state_dict().items(), learn.model.state_dict().values()): assert torch.equal(a, b), k

def test_a_fit_that_was_refused_or_left_does_not_count(make_learn, tmp_path):
    def go(learn, n, *cbs):
        with Quiet(learn): learn.fit(n, .01, cbs=list(cbs))
    whole = make_learn(cbs=SESEMI())
    go(whole, 4)
    learn = make_learn(cbs=[SESEMI(), Checkpoint(tmp_path/'c', resume=True)])
    with pytest.raises(KeyboardInterrupt): go(learn, 4, Crash())
    with pytest.raises(InputError, match='of a fit of 4 epochs, this one has 3'): go(learn, 3)
    go(learn, 4)
    assert learn.checkpoint.start == 2 and {f.name[:5] for f in checkpoint_files(tmp_path/'c')} == {'fit-1'}
    assert all(torch.equal(a, b) for a,b in zip(whole.model.state_dict().values(), learn.model.state_dict().values()))
    other = make_learn(cbs=Checkpoint(tmp_path/'c'))
    for _ in range(2):
        with pytest.raises(InputError, match='of an earlier run'): go(other, 4)

def test_weights_that_are_not_finite_are_not_kept(make_learn, tmp_path, capsys):
    class Spoil(Callback):
        def after_train(self):
            if self.epoch == 1: next(iter(self.learn.model.parameters())).data.fill_(float('nan'))
    learn = make_learn(cbs=[Checkpoint(tmp_path/'c', keep=1), FiniteLoss()])
    with pytest.raises(RunStopped, match='the last good checkpoint is .*fit-1-epoch-0001'), Quiet(learn): learn.fit(4, .01, cbs=Spoil())
    assert 'no checkpoint of epoch 2: some weights are not finite' in capsys.readouterr().err

def test_a_function_that_draws_images(make_learn, tmp_path):
    drawn = []
    def new():
        files = make_learn().dls.train_ds.items
        def draw(learn):
            drawn.append(random.sample(range(len(files)), 8))
            return [files[i] for i in drawn[-1]]
        return make_learn(cbs=SESEMI(draw, bs=4))
    def go(learn, *cbs):
        with Quiet(learn): learn.fit(4, .01, cbs=list(cbs))
        return learn
    whole,images = go(new()),drawn.copy()
    with pytest.raises(KeyboardInterrupt): go(new(), Checkpoint(tmp_path/'c'), Crash())
    drawn.clear()
    resumed = go(new(), Checkpoint(tmp_path/'c', resume=True))
    assert drawn == images[2:]
    assert all(torch.equal(a, b) for a,b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values()))

@pytest.mark.cell('Resume', 'a fit that EarlyStoppingCallback has ended is done, and passed over')
@pytest.mark.parametrize('every', [1,3])
def test_a_fit_that_was_stopped_early_is_done(make_learn, tmp_path, capsys, every):
    class Worse(Callback):
        order = 55
        def after_epoch(self): self.recorder.values[-1][1] = float(self.epoch) # the validation loss, as it grows
    def go(resume): return fit(make_learn(cbs=[Worse(), EarlyStoppingCallback(patience=1)]), 5, cbs=Checkpoint(tmp_path/'c', resume=resume, every=every))
    learn = go(False)
    weights,values = [p.clone() for p in learn.model.parameters()],list(learn.recorder.values)
    assert len(values) == 2 and [f.stem for f in checkpoint_files(tmp_path/'c')][0] == 'fit-1-epoch-0002'
    again = go(True)
    assert 'is done, nothing is trained' in capsys.readouterr().err and [*again.recorder.values] == values
    assert all(torch.equal(a, b) for a,b in zip(weights, again.model.parameters()))
    assert traces(again) == CLEAN

@pytest.mark.parametrize('order', [55,120])
def test_a_fit_that_a_time_limit_has_ended_goes_on(make_learn, tmp_path, order):
    class Limit(Callback):
        def after_epoch(self):
            if self.epoch == 1: raise CancelFitException()
    limit = Limit()
    limit.order = order
    def go(cbs, **kwargs): return fit(make_learn(cbs=cbs), 4, cbs=Checkpoint(tmp_path/'c', every=3, **kwargs))
    assert len(go([limit]).recorder.values) == 2 and checkpoint_files(tmp_path/'c')[0].stem == 'fit-1-epoch-0002'
    learn,whole = go([], resume=True),fit(make_learn(), 4)
    assert all(torch.equal(a, b) for a,b in zip(learn.model.parameters(), whole.model.parameters()))

def test_a_finished_fit_needs_no_folder_that_can_be_written_to(make_learn, tmp_path, monkeypatch):
    def go(**kwargs): return fit(make_learn(), 2, cbs=Checkpoint(tmp_path/'c', **kwargs))
    weights = [p.clone() for p in go().model.parameters()]
    monkeypatch.setattr(os, 'access', lambda *args: False)
    assert all(torch.equal(a, b) for a,b in zip(weights, go(resume=True).model.parameters()))
    learn = make_learn()
    with pytest.raises(InputError, match='cannot be written to'): fit(learn, 3, cbs=Checkpoint(tmp_path/'d'))
    fit(learn, 1)
    assert traces(learn) == CLEAN

def test_a_folder_for_checkpoints_that_cannot_be_is_told_before_training(make_learn, tmp_path):
    (tmp_path/'file').write_text('mine')
    for folder in (tmp_path/'file', Path('/proc/none')):
        learn = make_learn()
        with pytest.raises(InputError, match='cannot be'): fit(learn, cbs=Checkpoint(folder))
        assert not learn.recorder.lrs

def test_what_a_checkpoint_can_keep(make_learn, tmp_path):
    def go(config, resume=False):
        learn = make_learn(cbs=Checkpoint(tmp_path/'c', resume=resume, config=config))
        with Quiet(learn): learn.fit(1, .01)
    kept = dict(path=tmp_path, rate=np.float32(.1), rates=np.array([.1,.2]), none=float('nan'))
    go(kept); go(kept, resume=True)
    with pytest.raises(InputError, match='other settings: rate'): go({**kept, 'rate':np.float32(.2)}, resume=True)
    with pytest.raises(InputError, match='slice.* leave it out'): go(dict(lr=slice(1, 2)))
    with pytest.raises(InputError, match='give a dict'): go('mine')

@pytest.mark.cell('Resume', 'a damaged or truncated checkpoint is refused, and the one before it is used')
def test_damaged_checkpoint_gives_way_to_the_one_before(make_learn, tmp_path, capsys):
    whole = make_learn(cbs=SESEMI())
    fit(whole, 4)
    with pytest.raises(KeyboardInterrupt): fit(make_learn(cbs=SESEMI()), 4, cbs=[Checkpoint(tmp_path/'c'), Crash()])
    newest = checkpoint_files(tmp_path/'c')[0]
    newest.write_bytes(newest.read_bytes()[:-100])
    resumed = fit(make_learn(cbs=SESEMI()), 4, cbs=Checkpoint(tmp_path/'c', resume=True))
    assert f'not used: {newest} is cut short' in capsys.readouterr().err
    assert all(torch.equal(a, b) for a,b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values()))

@pytest.mark.parametrize('logs', [False,True])
def test_resume_under_a_progress_bar(make_learn, tmp_path, capsys, logs):
    "As in a notebook or a terminal: earlier rows are shown again"
    def new(): return make_learn(cbs=[SESEMI(), ProgressCallback()])
    with pytest.raises(KeyboardInterrupt): new().fit(4, .01, cbs=[Checkpoint(tmp_path/'c'), Crash()])
    capsys.readouterr()
    learn = new()
    learn.fit(4, .01, cbs=[Checkpoint(tmp_path/'c', resume=True), *([CSVLogger(tmp_path/'h.csv')] if logs else [])])
    if logs: assert pd.read_csv(tmp_path/'h.csv').epoch.tolist() == [0,1,2,3]
    rows = re.findall(r'^\[?(\d)[, ]', capsys.readouterr().out, re.MULTILINE)
    assert rows == list('0123') and traces(learn) == CLEAN

def test_a_checkpoint_of_a_longer_fit(make_learn, tmp_path):
    fit(make_learn(), 3, cbs=Checkpoint(tmp_path/'c'))
    with pytest.raises(InputError, match='of 3 epochs, this one has 2'): fit(make_learn(), 2, cbs=Checkpoint(tmp_path/'c', resume=True))

def test_other_fits_of_the_learner_leave_checkpoints_alone(make_learn, tmp_path):
    learn = make_learn(cbs=[SESEMI(), Checkpoint(tmp_path/'c')])
    with learn.no_bar(): learn.lr_find(show_plot=False, num_it=5)
    learn.validate(); learn.get_preds()
    assert not checkpoint_files(tmp_path/'c')
    fit(learn, 3)
    assert [o.name for o in checkpoint_files(tmp_path/'c')] == ['fit-1-epoch-0003.pth','fit-1-epoch-0002.pth']
    learn.validate()
    learn.export('e.pkl')

# -- on the command line
def interrupted(mini, out, monkeypatch, *args):
    "A run that gets Ctrl-C in its third epoch"
    import sesemi_fastai.experiment as exp
    class Now(FiniteLoss):
        def after_loss(self):
            if self.training and self.epoch == 2: raise KeyboardInterrupt
    with monkeypatch.context() as mp:
        mp.setattr(exp, 'FiniteLoss', Now)
        res = run('sesemi-train', '--path', mini, '--epochs', 4, '--export', '--out', out, *small, *args)
    assert res.returncode == 130 and f'sesemi-train --resume {out}' in res.stderr
    return res

def test_resume_on_the_command_line(mini, tmp_path, monkeypatch):
    run('sesemi-train', '--path', mini, '--epochs', 4, '--export', '--out', tmp_path/'whole', *small)
    interrupted(mini, tmp_path/'x', monkeypatch)
    record = json.loads((tmp_path/'x/record.json').read_text())
    assert record['status'] == 'interrupted' and len(record['history']) == 2
    res = run('sesemi-train', '--path', mini, '--epochs', 4, '--out', tmp_path/'x', *small)
    assert res.returncode == 2 and 'go on with sesemi-train --resume' in res.stderr
    res = run('sesemi-train', '--resume', tmp_path/'x', '--epochs', 9)
    assert res.returncode == 2 and 'leave out --epochs' in res.stderr
    res = run('sesemi-train', '--resume', tmp_path/'x')
    assert res.returncode == 0, res.stderr
    a,b = (json.loads((tmp_path/o/'record.json').read_text()) for o in ('whole','x'))
    for h in a['history']+b['history']: del h['seconds']
    assert a['history'] == b['history'] and b['status'] == 'done' and b['resumed'] == 1 and a['images'] == b['images'] and a['config'] == b['config']
    assert not (tmp_path/'x/checkpoints').exists() and (tmp_path/'x/export.pkl').exists()
    again = run('sesemi-train', '--resume', tmp_path/'x')
    assert again.returncode == 0 and json.loads(again.stdout)['resumed'] == 1
    assert run('sesemi-train', '--resume', tmp_path/'nothing').returncode == 2

@pytest.mark.cell('Resume', 'a foreign checkpoint, one of another run or other data, one that holds code: refused with a clear line')
def test_foreign_checkpoints_are_refused(mini, tmp_path, monkeypatch):
    interrupted(mini, tmp_path/'x', monkeypatch)
    for f in checkpoint_files(tmp_path/'x/checkpoints'): torch.save({'model': {}}, f)
    res = run('sesemi-train', '--resume', tmp_path/'x')
    assert res.returncode == 2 and 'no checkpoint of this package' in res.stderr and 'Traceback' not in res.stderr
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'evil'),)
    for f in checkpoint_files(tmp_path/'x/checkpoints'): torch.save({'model': Evil()}, f)
    assert run('sesemi-train', '--resume', tmp_path/'x').returncode == 2 and not (tmp_path/'evil').exists()
    interrupted(mini, tmp_path/'y', monkeypatch, '--seed', 1)
    for f in checkpoint_files(tmp_path/'y/checkpoints'): shutil.copy(f, tmp_path/'x/checkpoints'/f.name)
    res = run('sesemi-train', '--resume', tmp_path/'x')
    assert res.returncode == 2 and 'run with other settings: seed 1 there, 0 here' in res.stderr

def test_compare_goes_on(mini, tmp_path, monkeypatch):
    import sesemi_fastai.experiment as exp
    args = ['sesemi-compare', tmp_path/'c', '--path', mini, '--seeds', 0, '--epochs', 2, *small]
    class Now(FiniteLoss):
        def after_loss(self):
            if self.training and self.epoch == 1: raise KeyboardInterrupt
    with monkeypatch.context() as mp:
        mp.setattr(exp, 'FiniteLoss', Now)
        assert run(*args).returncode == 130
    assert run(*args).returncode == 0
    o = json.loads((tmp_path/'c/plain-2ep-seed0/record.json').read_text())
    assert o['status'] == 'done' and o['resumed'] == 1

@pytest.mark.cell('Numbers', 'a nan or infinite loss stops the run, and names the step and the last good checkpoint')
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_loss_that_is_no_number(mini, tmp_path, monkeypatch, value):
    import sesemi_fastai.callback as cb
    calls = []
    def broken(pred, turns):
        calls.append(1)
        return pred.sum()*value if len(calls) == 10 else pred.sum()*0
    monkeypatch.setattr(cb, 'rotation_loss', broken)
    res = run('sesemi-train', '--path', mini, '--epochs', 3, '--out', tmp_path/'x', *small)
    assert res.returncode == 1 and len(res.stderr.strip().splitlines()) == 1
    assert f"epoch 2, step 3 of 7; the last good checkpoint is {tmp_path/'x/checkpoints/fit-1-epoch-0001.pth'}" in res.stderr

def test_finite_loss_leaves_lr_find_alone(make_learn):
    learn = make_learn(cbs=[SESEMI(), FiniteLoss()])
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    with learn.no_bar(): learn.lr_find(show_plot=False, end_lr=1e30, num_it=30, stop_div=False)
    assert all(torch.equal(before[k], v) for k,v in learn.model.state_dict().items())

def test_one_run_at_a_time(mini, tmp_path):
    from filelock import FileLock
    (tmp_path/'x').mkdir()
    with FileLock(tmp_path/'x/.lock'):
        res = run('sesemi-train', '--path', mini, '--epochs', 1, '--out', tmp_path/'x', *small)
    assert res.returncode == 2 and 'another process is training' in res.stderr
    assert run('sesemi-train', '--path', mini, '--epochs', 1, '--out', tmp_path/'x', *small).returncode == 0
    res = run('sesemi-train', '--path', mini, '--epochs', 1, '--seed', 5, '--out', tmp_path/'x', *small)
    assert res.returncode == 2 and 'holds a finished run with other settings (seed 0 there, 5 here)' in res.stderr

def test_what_is_not_ours_stays(mini, tmp_path):
    (tmp_path/'x/checkpoints').mkdir(parents=True)
    (tmp_path/'x/checkpoints/best.ckpt').write_text('mine')
    res = run('sesemi-train', '--path', mini, '--epochs', 1, '--out', tmp_path/'x', *small)
    assert res.returncode == 2 and 'holds best.ckpt, which is of another program' in res.stderr and (tmp_path/'x/checkpoints/best.ckpt').read_text() == 'mine'
    own = tmp_path/'own'
    shutil.copytree(mini, own)
    table = pd.read_csv(own/'noisy_mini.csv')
    table.assign(label=table.noisy_labels_50, note='mine').to_csv(own/'labels.csv', index=False)
    before = (own/'labels.csv').read_bytes()
    for path in (own/'labels.csv',mini): # also where it is not what the run is trained from
        res = run('sesemi-train', '--dataset', 'own', '--path', path, '--epochs', 1, '--out', own, *small)
        assert res.returncode == 2 and 'would replace it' in res.stderr and (own/'labels.csv').read_bytes() == before and not (own/'record.json').exists()

@pytest.mark.cell('Resume', 'other data under the same name are refused; data that have moved are found with --path')
def test_other_data_and_moved_data(mini, tmp_path, monkeypatch):
    shutil.copytree(mini, tmp_path/'data')
    interrupted(tmp_path/'data', tmp_path/'x', monkeypatch)
    (tmp_path/'data').rename(tmp_path/'moved')
    res = run('sesemi-train', '--resume', tmp_path/'x')
    assert res.returncode == 2 and 'say where with --path' in res.stderr and not (tmp_path/'data').exists()
    df = pd.read_csv(tmp_path/'moved/noisy_mini.csv')
    df[5:].to_csv(tmp_path/'moved/noisy_mini.csv', index=False)
    res = run('sesemi-train', '--resume', tmp_path/'x', '--path', tmp_path/'moved')
    assert res.returncode == 2 and 'other settings: ' in res.stderr and 'data ' in res.stderr and 'path ' not in res.stderr.split('other settings: ')[-1]
    df.to_csv(tmp_path/'moved/noisy_mini.csv', index=False)
    res = run('sesemi-train', '--resume', tmp_path/'x', '--path', tmp_path/'moved')
    assert res.returncode == 0, res.stderr

def test_kill_between_the_last_checkpoint_and_the_export(mini, tmp_path, monkeypatch):
    import sesemi_fastai.experiment as exp
    def killed(*args): raise KeyboardInterrupt
    with monkeypatch.context() as mp:
        mp.setattr(exp, '_leave_results', killed)
        assert run('sesemi-train', '--path', mini, '--epochs', 2, '--export', '--precision', 'fp32', '--out', tmp_path/'x', *small).returncode == 130
    assert run('sesemi-train', '--resume', tmp_path/'x').returncode == 0
    assert b'sesemi_fastai' not in (tmp_path/'x/export.pkl').read_bytes()

@pytest.mark.parametrize('content', ['[]','"x"','5','{"option_of_tomorrow": 1}','{'])
def test_spoiled_notes(mini, tmp_path, content):
    (tmp_path/'x/checkpoints').mkdir(parents=True)
    for f in ('checkpoints/args.json','record.json'): (tmp_path/'x'/f).write_text(content)
    res = run('sesemi-train', '--resume', tmp_path/'x')
    assert res.returncode == 2 and len(res.stderr.strip().splitlines()) == 1
    assert run('sesemi-train', '--path', mini, '--epochs', 1, '--out', tmp_path/'x', *small).returncode == 0

@pytest.mark.cell('Keeping', 'a disk that is full: one line, and the record says that the run failed')
def test_full_disk(mini, tmp_path, monkeypatch):
    import sesemi_fastai.checkpoint as ck
    def full(*args): raise RuntimeError('[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0')
    monkeypatch.setattr(ck.torch, 'save', full)
    res = run('sesemi-train', '--path', mini, '--epochs', 2, '--out', tmp_path/'x', *small)
    assert res.returncode == 2 and 'maybe the disk is full' in res.stderr and len(res.stderr.strip().splitlines()) == 1
    assert json.loads((tmp_path/'x/record.json').read_text())['status'] == 'failed' and not list((tmp_path/'x/checkpoints').glob('.fit*'))

def test_full_disk_at_the_export(mini, tmp_path, monkeypatch):
    import sesemi_fastai.experiment as exp
    def full(*args): raise RuntimeError('[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0')
    with monkeypatch.context() as mp:
        mp.setattr(exp, 'write_weights', full)
        res = run('sesemi-train', '--path', mini, '--epochs', 1, '--export-weights', 'pth', '--out', tmp_path/'x', *small)
    assert res.returncode == 2 and 'maybe the disk is full' in res.stderr and len(res.stderr.strip().splitlines()) == 1
    assert run('sesemi-train', '--resume', tmp_path/'x').returncode == 0 and (tmp_path/'x/model.pth').exists()

def test_diverged_runs(mini, tmp_path, monkeypatch):
    import sesemi_fastai.callback as cb
    def broken(pred, turns): return pred.sum()*float('nan')
    with monkeypatch.context() as mp:
        mp.setattr(cb, 'rotation_loss', broken)
        res = run('sesemi-compare', tmp_path/'c', '--path', mini, '--seeds', 0, '--epochs', 1, *small)
        assert res.returncode == 1 and '1 of 3 runs ended early' in res.stderr
        assert {f.parent.name.split('-')[0]:json.loads(f.read_text())['status'] for f in (tmp_path/'c').rglob('record.json')} == dict(plain='done',
            sesemi='diverged', plain_compute='done')
    assert run('sesemi-train', '--path', mini, '--epochs', 1, '--lr', .001, '--out', tmp_path/'c/sesemi-1ep-seed0', *small).returncode == 0

def test_a_fit_of_other_kind_is_not_taken_for_this_one(make_learn, make_dls, tmp_path, capsys):
    def go(lr=.01, cbs=(), **kwargs):
        learn = make_learn(cbs=cbs, **kwargs)
        with Quiet(learn): learn.fit_one_cycle(2, lr, cbs=Checkpoint(tmp_path/'c', resume=True))
        return learn
    go()
    assert 'nothing is trained' not in capsys.readouterr().err
    go()
    assert 'is done, nothing is trained' in capsys.readouterr().err
    go(opt_func=partial(SGD, lr=.1)) # which the schedule overrides
    for kwargs,word in ((dict(lr=1e-6), 'lr'), (dict(cbs=[RobustLoss(ELR())]), 'callbacks'), (dict(opt_func=Adam), 'optimizer'),
                        (dict(opt_func=ranger), 'optimizer'), (dict(opt_func=torch_sgd), 'optimizer'), (dict(opt_func=torch_adam), 'optimizer'),
                        (dict(model=xresnet18(n_out=4)), 'network'), (dict(loss_func=LabelSmoothingCrossEntropyFlat()), 'loss'),
                        (dict(dls=make_dls(bs=4)), 'batch')):
        with pytest.raises(InputError, match=f'of another fit: {word} .* there'): go(**kwargs)

def test_other_labels_are_another_fit(mini, tmp_path):
    def go(noise):
        learn = Learner(mini_dls(noise=noise, path=mini, size=32, bs=16, num_workers=0),
                        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)), path=tmp_path, cbs=Checkpoint(tmp_path/'c', resume=True))
        with Quiet(learn): learn.fit(1, .01)
    go(50); go(50)
    with pytest.raises(InputError, match='another fit: train 120 images'): go(5)

def by_function(mini, labels, vocab=None, **kwargs):
    "Files whose labels come from elsewhere"
    return DataBlock((ImageBlock,CategoryBlock(vocab=vocab, sort=False)), get_items=lambda _: sorted(labels), get_y=lambda o: labels[o],
                     splitter=IndexSplitter(range(20)), item_tfms=Resize(32)).dataloaders(mini, bs=16, num_workers=0, **kwargs)

def test_labels_from_a_function_and_the_order_of_classes_are_of_the_fit(mini, tmp_path):
    labels = {o:o.parent.name for o in get_image_files(mini/'train')}
    names = sorted({*labels.values()})
    def go(labels, vocab=names):
        learn = Learner(by_function(mini, labels, vocab), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)), path=tmp_path,
                        cbs=Checkpoint(tmp_path/'c', resume=True))
        with Quiet(learn): learn.fit(1, .01)
    go(labels); go(dict(labels))
    with pytest.raises(InputError, match='another fit: labels 10 classes'): go({o:names[i % 10] for i,o in enumerate(sorted(labels))})
    with pytest.raises(InputError, match='another fit: labels 10 classes'): go(labels, names[::-1])

def test_other_labels_of_the_same_files_are_other_images(mini, tmp_path):
    "What was remembered of them begins anew, and goes on where only the size is another"
    labels = {o:o.parent.name for o in get_image_files(mini/'train')}
    names = sorted({*labels.values()})
    learn = Learner(by_function(mini, labels, names), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)), path=tmp_path,
                    cbs=LabelReport())
    epochs = []
    for dls in (learn.dls, by_function(mini, dict(labels), names), by_function(mini, {o:names[i % 10] for i,o in enumerate(sorted(labels))}, names)):
        learn.dls = dls
        with Quiet(learn): learn.fit(1, .01)
        epochs.append(learn.label_report.epochs)
    assert epochs == [1,2,1]

@pytest.mark.parametrize('rows', [True,False])
def test_another_order_is_another_fit(mini, tmp_path, rows):
    "What is remembered of images is kept by their place"
    table = noisy_table(mini, 50)
    def go(table):
        if rows: dls = table_dls(table, mini, 32, bs=16, num_workers=0)
        else:
            dls = ImageDataLoaders.from_lists(mini, [mini/o for o in table.path], list(table.label), valid_pct=.2, seed=0, item_tfms=Resize(32),
                bs=16, num_workers=0)
        learn = Learner(dls, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)), path=tmp_path, cbs=Checkpoint(tmp_path/'c', resume=True))
        with Quiet(learn): learn.fit(1, .01)
    go(table); go(table)
    with pytest.raises(InputError, match='another fit: train'): go(table.sample(frac=1, random_state=0))
