"Robust losses in the company of everything a Learner does"
import copy
import numpy as np, pytest, torch
import torch.nn.functional as F
from fastai.vision.all import (Callback, CutMix, GradientAccumulation, LabelSmoothingCrossEntropyFlat, MixUp, SGD, accuracy, load_learner, ranger)
from sesemi_fastai.callback import SESEMI
from sesemi_fastai.checkpoint import Checkpoint
from sesemi_fastai.items import ItemIndex
from sesemi_fastai.memory import Memorisation
from sesemi_fastai.robust import ELR, GCE, SCE, Bootstrap, RobustLoss, losses
from test_callback import CLEAN, Boom, Quiet, fit, traces
from test_cli import last, run, small
from test_resume import Crash, mini

every = [n for n in losses if n != 'none']

class Items(Callback):
    "Which image each label belongs to, checked with the files"
    order = 90
    def before_fit(self): self.seen = []
    def after_loss(self):
        if not self.training: return
        y = self.learn.yb[0]
        files = [self.dls.train_ds.items[i] for i in y.idx.tolist()]
        assert [self.dls.vocab[o] for o in y.tolist()] == [f.parent.name for f in files]
        self.seen += y.idx.tolist()

@pytest.mark.cell('Robust losses', 'labels know their image: shuffling, loader workers, MixUp, CutMix, gradient accumulation')
@pytest.mark.parametrize('cbs,workers', [([],0), ([],2), ([MixUp],0), ([CutMix],0), ([lambda: GradientAccumulation(16)],0), ([SESEMI],0), ([lambda: SESEMI(bs=6)],2)],
                         ids=['plain','workers','MixUp','CutMix','accumulation','SESEMI','SESEMI and workers'])
def test_items_of_a_batch(make_learn, make_dls, cbs, workers):
    dls = make_dls()
    dls.train.fake_l.num_workers = workers
    learn = fit(make_learn(dls=dls, cbs=[ItemIndex(), Items(), *(f() for f in cbs)]), 2)
    assert len(learn.items.seen) == 96 and all(learn.items.seen[i:i+48] != sorted(learn.items.seen[i:i+48]) for i in (0,48))
    assert sorted(learn.items.seen[:48]) == list(range(48)) and 'get_idxs' not in vars(dls.train)

def test_plain_training_does_not_see_the_index(make_learn):
    for cbs in ([], [SESEMI(bs=6)]):
        for cb in (ItemIndex, Memorisation): # before and behind SESEMI in order
            a,b = fit(make_learn(cbs=[copy.copy(o) for o in cbs]), 3),fit(make_learn(cbs=[cb(), *map(copy.copy, cbs)]), 3)
            assert all(torch.equal(p, q) for p,q in zip(a.model.state_dict().values(), b.model.state_dict().values())) and a.recorder.losses == b.recorder.losses

@pytest.mark.cell('Robust losses', 'GCE, SCE, bootstrapping, ELR: with SESEMI, MixUp, CutMix, bf16, gradient accumulation; the Learner keeps its own loss for everything but training')
@pytest.mark.parametrize('name', every)
@pytest.mark.parametrize('extra', [[], ['SESEMI'], ['MixUp'], ['CutMix'], ['bf16'], ['accumulation'], ['SESEMI','MixUp','bf16','accumulation']], ids='+'.join)
def test_every_loss_in_company(make_learn, name, extra):
    cbs = dict(SESEMI=SESEMI, MixUp=MixUp, CutMix=CutMix, accumulation=lambda: GradientAccumulation(16))
    learn = make_learn(cbs=[RobustLoss(losses[name]()), *(cbs[o]() for o in extra if o != 'bf16')]).to_precision('bf16' if 'bf16' in extra else 'fp32')
    own = learn.loss_func
    fit(learn, 2)
    assert learn.loss_func is own and np.isfinite(learn.recorder.values[-1]).all() and traces(learn) == CLEAN
    preds,targs = learn.get_preds()
    assert learn.validate()[0] == pytest.approx(F.nll_loss(preds.log(), targs.as_subclass(torch.Tensor)).item(), abs=.02 if 'bf16' in extra else 1e-3)

def test_cross_entropy_as_a_robust_loss_is_plain_training(make_learn):
    a,b = fit(make_learn(), 2),fit(make_learn(cbs=RobustLoss(ELR(lam=0.))), 2)
    for p,q in zip(a.model.parameters(), b.model.parameters()): torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4)

@pytest.mark.cell('Robust losses', 'lr_find sees the plain loss and leaves the targets alone; validation before any fit')
def test_lr_find(make_learn):
    make_learn(cbs=RobustLoss(ELR())).validate()
    found = []
    for cbs in (None, RobustLoss(ELR())):
        learn = make_learn(cbs=cbs)
        with learn.no_bar(): found.append((learn.lr_find(show_plot=False, num_it=10).valley, learn.recorder.losses))
    assert found[0] == found[1] and learn.robust_loss.loss_func_of_training.targets is None
    fit(learn)
    before = learn.robust_loss.loss_func_of_training.targets.clone()
    with learn.no_bar(): learn.lr_find(show_plot=False, num_it=5)
    assert torch.equal(before, learn.robust_loss.loss_func_of_training.targets)

@pytest.mark.cell('Robust losses', 'the targets of ELR go into checkpoints: a resumed run ends bit for bit as an undisturbed one')
def test_resumed_elr(make_learn, tmp_path):
    def new(): return make_learn(cbs=[RobustLoss(ELR()), SESEMI()], opt_func=ranger)
    def go(learn, *cbs):
        with Quiet(learn): learn.fit_one_cycle(4, .01, cbs=cbs)
        return learn
    whole = go(new())
    with pytest.raises(KeyboardInterrupt): go(new(), Checkpoint(tmp_path/'c'), Crash())
    resumed = go(new(), Checkpoint(tmp_path/'c', resume=True))
    assert all(torch.equal(a, b) for a,b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values()))
    assert torch.equal(*(o.robust_loss.loss_func_of_training.targets for o in (whole, resumed)))

@pytest.mark.cell('Robust losses', 'Ctrl-C and errors put the loss back; export needs no package')
@pytest.mark.parametrize('cbs', [[], [MixUp]])
def test_loss_is_put_back(make_learn, tmp_path, cbs):
    learn = make_learn(cbs=[RobustLoss(ELR()), *(f() for f in cbs)])
    own = learn.loss_func
    with pytest.raises(KeyboardInterrupt): fit(learn, cbs=Boom(KeyboardInterrupt(), 'before_step'))
    assert learn.loss_func is own and traces(learn) == CLEAN and 'get_idxs' not in vars(learn.dls.train)
    fit(learn)
    learn.export('e.pkl')
    assert b'sesemi_fastai' not in (tmp_path/'e.pkl').read_bytes()
    copy.deepcopy(learn)

def test_elr_holds_targets_of_all_images(make_learn):
    learn = fit(make_learn(cbs=RobustLoss(ELR())), 2)
    t = learn.robust_loss.loss_func_of_training.targets
    assert t.shape == (48,3) and torch.allclose(t.sum(1), torch.full((48,), 1-.7**2), atol=1e-3)

@pytest.mark.parametrize('name', every)
def test_on_the_command_line(mini, name):
    res = run('sesemi-train', '--path', mini, '--epochs', 1, '--robust', name, '--unlabeled', 'none', *small)
    assert res.returncode == 0 and last(res)['method'] == name.upper()
    if name == 'elr': assert 'choose one of none, gce' in run('sesemi-train', '--path', mini, '--robust', 'lion', *small).stderr

# -- diagnostics
@pytest.mark.cell('Robust losses', 'memorisation live: with SESEMI, robust losses, MixUp, loggers; known true labels or not')
@pytest.mark.parametrize('cbs', [[], [SESEMI], [MixUp], [lambda: RobustLoss(ELR()), SESEMI]], ids=['alone','SESEMI','MixUp','ELR and SESEMI'])
def test_memorisation_in_company(make_learn, tmp_path, cbs):
    from fastai.vision.all import CSVLogger
    import pandas as pd
    learn = make_learn(cbs=[Memorisation(), *(f() for f in cbs)])
    learn.dls.train_ds.true = None
    fit(learn, 2, cbs=CSVLogger(tmp_path/'h.csv'))
    df = pd.read_csv(tmp_path/'h.csv')
    assert df.as_given.between(0, 1).all() and df.wrong_as_true.isna().all() and df.accuracy.notna().all() and traces(learn) == CLEAN
    assert ('rot_loss' in df) == (SESEMI in cbs) and (SESEMI not in cbs or df.rot_loss.between(.3, 5).all())
    assert len(learn.validate()) == 2 and len(learn.memorisation.history) == 2
    learn.memorisation.true = ['class0']*48
    fit(learn)
    assert 0 <= learn.memorisation.history[-1]['wrong_as_given'] <= 1
