"Robust losses in the company of everything a Learner does"
import copy, shutil
import numpy as np, pandas as pd, pytest, torch
import torch.nn.functional as F
from fastai.callback.data import PartialDL, WeightedDL
from fastai.vision.all import (ClassificationInterpretation, CancelFitException, CancelStepException, Callback, CategoryBlock, ColReader,
    CrossEntropyLossFlat, CSVLogger, CutMix, DataBlock, DataLoader, DataLoaders, GradientAccumulation, ImageBlock, IndexSplitter,
    LabelSmoothingCrossEntropyFlat, Learner, MixUp, Resize, SGD, ShortEpochCallback, TensorCategory, accuracy, get_image_files, noop,
    load_learner, ranger, set_seed)
from sesemi_fastai.callback import SESEMI
from sesemi_fastai.checkpoint import Checkpoint
from sesemi_fastai.core import InputError
from sesemi_fastai.estimate import labels_by_class, share_by_class, share_of_wrong_labels, transition
from sesemi_fastai.corrections import accepted
from sesemi_fastai.items import ItemIndex, indexed
from sesemi_fastai.average import EMA
from sesemi_fastai.labels import LabelReport, average_precision, truly_wrong
from sesemi_fastai.memory import Memorisation
from sesemi_fastai.methods import method_title, methods, robust_cbs
from sesemi_fastai.predictions import Predictions
from sesemi_fastai.pseudo import FixMatch
from sesemi_fastai.forward import ForwardCorrection
from sesemi_fastai.losses import ELR, GCE, SCE, Bootstrap
from sesemi_fastai.robust import RobustLoss
from sesemi_fastai.steps import StepsPerEpoch
from sesemi_fastai.selection import SmallLoss, chosen_labels, rejected_items
from conftest import tiny_model
from test_callback import CLEAN, Boom, Quiet, fit, traces
from test_cli import last, run, small
from test_resume import Crash, mini

every = [n for n in methods if n != 'none']

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
@pytest.mark.parametrize('cbs,workers',
                         [([],0), ([],2), ([MixUp],0), ([CutMix],0), ([lambda: GradientAccumulation(16)],0), ([SESEMI],0), ([lambda: SESEMI(bs=6)],2)],
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
            assert all(torch.equal(p, q) for p, q in zip(a.model.state_dict().values(), b.model.state_dict().values()))
            assert a.recorder.losses == b.recorder.losses

@pytest.mark.cell('Robust losses', 'GCE, SCE, bootstrapping, ELR: with SESEMI, MixUp, CutMix, bf16, gradient accumulation; the Learner '
                                   'keeps its own loss for everything but training')
@pytest.mark.parametrize('name', every)
@pytest.mark.parametrize('extra', [[], ['SESEMI'], ['MixUp'], ['CutMix'], ['bf16'], ['accumulation'], ['SESEMI','MixUp','bf16','accumulation']], ids='+'.join)
def test_every_loss_in_company(make_learn, name, extra):
    if name in ('smallloss','fixmatch') and {'MixUp','CutMix'} & {*extra}:
        with pytest.raises(InputError, match='needs unmixed images'): fit(make_learn(cbs=[*robust_cbs(name), MixUp()]))
        extra = [o for o in extra if o not in ('MixUp','CutMix')]
    cbs = dict(SESEMI=SESEMI, MixUp=MixUp, CutMix=CutMix, accumulation=lambda: GradientAccumulation(16))
    robust = robust_cbs(name)
    if name == 'auto': robust[0].loss_func_of_training.takeover,robust[0].loss_func_of_training.doubt = (0,2),(0,1) # in two epochs
    learn = make_learn(cbs=[*robust, *(cbs[o]() for o in extra if o != 'bf16')]).to_precision('bf16' if 'bf16' in extra else 'fp32')
    own = learn.loss_func
    fit(learn, 2)
    assert learn.loss_func is own and np.isfinite(learn.recorder.values[-1]).all() and traces(learn) == CLEAN
    if name == 'auto': assert robust[0].loss_func_of_training.passes == pytest.approx(2) and robust[0].loss_func_of_training.taken == .5
    preds,targs = learn.get_preds()
    assert learn.validate()[0] == pytest.approx(F.nll_loss(preds.log(), targs.as_subclass(torch.Tensor)).item(), abs=.02 if 'bf16' in extra else 1e-3)

def test_cross_entropy_as_a_robust_loss_is_plain_training(make_learn):
    a,b = fit(make_learn(), 2),fit(make_learn(cbs=RobustLoss(ELR(lam=0.))), 2)
    for p,q in zip(a.model.parameters(), b.model.parameters()): torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4)

@pytest.mark.cell('Robust losses', 'lr_find sees the plain loss and leaves the targets alone; validation before any fit')
def test_lr_find_leaves_targets_alone(make_learn):
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

@pytest.mark.cell('Robust losses', 'what a method remembers goes into checkpoints: a resumed run ends bit for bit as an undisturbed one')
@pytest.mark.parametrize('name,source', [('elr',None), ('ema',None), ('smallloss',rejected_items), ('fixmatch',rejected_items), ('auto',None)])
def test_resumed(make_learn, tmp_path, name, source):
    def new():
        cbs = robust_cbs(name)
        for cb in cbs:
            if name == 'fixmatch': cb.tau = .3
            if name == 'auto': cb.loss_func_of_training.takeover,cb.loss_func_of_training.doubt = (0,2),(0,1)
            if source and isinstance(cb, RobustLoss): cb.loss_func_of_training.start = 0.
        return make_learn(cbs=[*cbs, SESEMI(source, bs=2), Memorisation(), LabelReport()], opt_func=ranger)
    def go(learn, *cbs):
        with Quiet(learn): learn.fit_one_cycle(4, .01, cbs=cbs)
        return learn
    whole = go(new())
    with pytest.raises(KeyboardInterrupt): go(new(), Checkpoint(tmp_path/'c'), Crash())
    resumed = go(new(), Checkpoint(tmp_path/'c', resume=True))
    assert all(torch.equal(a, b) for a,b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values()))
    assert whole.memorisation.history == resumed.memorisation.history and torch.equal(whole.label_report.probs(), resumed.label_report.probs())
    if name in ('elr','auto'): assert torch.equal(*(o.robust_loss.loss_func_of_training.targets for o in (whole, resumed)))
    if name == 'auto':
        assert len({(o.robust_loss.loss_func_of_training.passes, o.robust_loss.loss_func_of_training.rate) for o in (whole, resumed)}) == 1
        assert whole.robust_loss.loss_func_of_training.passes == pytest.approx(4)
    if source: assert torch.equal(*(chosen_labels(o).losses for o in (whole, resumed))) and chosen_labels(whole).rejected.any()
    if name == 'fixmatch': assert whole.fix_match.n_images == resumed.fix_match.n_images > 0

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

def test_share_of_wrong_labels_is_estimated(make_learn, make_dls, tmp_path):
    learn = make_learn(cbs=[RobustLoss(ForwardCorrection(surest=.3, trust=.9)), Memorisation()])
    loss = learn.robust_loss.loss_func_of_training
    fit(learn, 2, cbs=CSVLogger(tmp_path/'h.csv'))
    t,y = loss.targets[:,:-1],torch.tensor([learn.dls.vocab.o2i[f.parent.name] for f in learn.dls.train_ds.items])
    assert t.shape == (48,3) and torch.equal(loss.targets[:,-1], y+1.) and loss.passes == pytest.approx(2)
    # 50 images are counted, if there are
    assert pd.read_csv(tmp_path/'h.csv').wrong_labels.tolist()[-1] == pytest.approx((t.argmax(1) != y).float().mean().item())
    assert traces(learn) == CLEAN and len(learn.validate()) == 2
    with learn.no_bar(): learn.lr_find(show_plot=False, num_it=5)
    assert loss.passes == pytest.approx(2)
    learn.dls = make_dls(split_seed=1) # as many, others
    fit(learn)
    assert loss.passes == pytest.approx(1) and loss.rate == 0

@pytest.mark.cell('Schedules and fits', 'larger images in a later fit (progressive resizing): targets, label report, memorisation and rotation head go on')
def test_larger_images_in_a_later_fit(make_learn, make_dls):
    "Progressive resizing: what is known of the images, and of the rotations, goes on"
    learn = fit(make_learn(cbs=[*robust_cbs('auto'), LabelReport(), Memorisation(), SESEMI(bs=6)]), 2)
    head = learn.sesemi.rot_head
    learn.dls = make_dls(size=48)
    fit(learn)
    assert learn.robust_loss.loss_func_of_training.passes == pytest.approx(3) and learn.label_report.epochs == 3 and len(learn.memorisation.history) == 3
    assert learn.sesemi.rot_head is head and learn.sesemi._stream.batch().shape == (6,3,48,48)
    learn.dls = make_dls(split_seed=1) # as many, others
    fit(learn)
    assert learn.robust_loss.loss_func_of_training.passes == pytest.approx(1) and learn.label_report.epochs == 1 and len(learn.memorisation.history) == 1

@pytest.mark.parametrize('loss', [lambda: ForwardCorrection(lam=3.), lambda: SmallLoss(start=0.)])
def test_a_loss_of_another_fold_begins_anew(make_learn, make_dls, loss):
    "What it remembers belongs to the images of the other split, those of validation among them"
    shared,sums = loss(),[]
    def remembered(): return getattr(shared, shared.remembers)
    for fold in range(2):
        learn = make_learn(dls=make_dls(split_seed=fold), cbs=RobustLoss(shared))
        fit(learn, 1, cbs=BeforeTraining(lambda: sums.append(remembered() is None or not remembered().any())))
    assert sums == [True,True]
    state,there = learn.robust_loss.state_dict(),remembered().clone()
    again = make_learn(dls=make_dls(split_seed=2), cbs=RobustLoss(shared))
    again.robust_loss.load_state_dict(state) # given on purpose
    fit(again, 1, cbs=BeforeTraining(lambda: sums.append(torch.equal(remembered(), there))))
    again.dls = make_dls(split_seed=3)
    fit(again, 1, cbs=BeforeTraining(lambda: sums.append(remembered() is None or not remembered().any())))
    twin = copy.deepcopy(again)
    twin.dls,theirs = make_dls(split_seed=4),lambda: getattr(twin.robust_loss.loss_func_of_training, shared.remembers)
    assert theirs().any()
    fit(twin, 1, cbs=BeforeTraining(lambda: sums.append(theirs() is None or not theirs().any())))
    assert sums == [True]*5
    fit(again, 1, cbs=BeforeTraining(lambda: sums.append(bool(remembered().any())))) # the same images: it goes on, in a callback for one fit as well
    again.remove_cb(RobustLoss)
    fit(again, 1, cbs=[RobustLoss(shared), BeforeTraining(lambda: sums.append(bool(remembered().any())))])
    assert sums == [True]*7

def test_other_images_after_a_fit_that_was_passed_over(make_learn, make_dls, tmp_path):
    "What the checkpoint has brought back is of the first fit's images"
    def go(resume):
        seen,loss = [],ELR()
        learn = make_learn(cbs=[RobustLoss(loss), Checkpoint(tmp_path/str(resume), resume=resume)])
        fit(learn, 1)
        learn.dls = make_dls(split_seed=1)
        fit(learn, 1, cbs=BeforeTraining(lambda: seen.append(loss.targets is None)))
        return seen
    assert go(False) == [True]
    shutil.copytree(tmp_path/'False', tmp_path/'True')
    for f in (tmp_path/'True').glob('fit-2-*'): f.unlink()
    assert go(True) == [True]

class BeforeTraining(Callback):
    order = 200
    def __init__(self, f): self.f = f
    def before_train(self): self.f()

def test_a_copied_learner_keeps_what_is_known_of_the_images(make_learn):
    learn = fit(make_learn(cbs=[*robust_cbs('auto'), LabelReport(), Memorisation(), Predictions()]), 2)
    twin = copy.deepcopy(learn)
    assert twin.label_report.frame().equals(learn.label_report.frame()) and twin.predictions.frame().equals(learn.predictions.frame())
    assert twin.memorisation.history == learn.memorisation.history
    fit(twin)
    assert twin.label_report.epochs == len(twin.memorisation.history) == 3 and twin.robust_loss.loss_func_of_training.passes == pytest.approx(3)
    assert learn.label_report.epochs == len(learn.memorisation.history) == 2

def test_a_loss_that_remembers_nothing_takes_any_loader():
    loader = torch.utils.data.DataLoader([(torch.rand(3,32,32),torch.tensor(i%3)) for i in range(16)], batch_size=8)
    learn = Learner(DataLoaders(loader, loader), tiny_model(), loss_func=CrossEntropyLossFlat(), cbs=RobustLoss(GCE()))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert np.isfinite(learn.recorder.values[-1]).all()

def test_the_surest_images_are_counted():
    rng = np.random.default_rng(0)
    p,y = rng.dirichlet([.3]*4, 2000),rng.integers(0, 4, 2000)
    p[1500:] = 0 # not seen yet
    loss = ForwardCorrection(surest=.1)
    loss.targets = torch.tensor(np.c_[p*rng.uniform(.3, 1, (2000,1)), y+1.]).float() # seen more or less often
    surest = p.max(1).argsort()[::-1][:150]
    share = (p[surest].argmax(1) != y[surest]).mean()
    loss.passes = 3.
    loss.begin(2000, 'cpu')
    assert .5 < share < 1 and loss.wrong_labels == pytest.approx(share) and loss.rate == pytest.approx(.5*min(share, .75))

def test_a_broken_epoch_is_no_pass(make_learn):
    learn = make_learn(cbs=RobustLoss(ForwardCorrection()))
    with pytest.raises(KeyboardInterrupt): fit(learn, 3, cbs=Boom(KeyboardInterrupt(), 'before_step'))
    loss = learn.robust_loss.loss_func_of_training
    fit(learn)
    assert loss.rate == 0 and 1 < loss.passes < 1.4

def test_memory_belongs_to_a_model(make_learn, make_dls):
    cbs = robust_cbs('auto')
    loss = cbs[0].loss_func_of_training
    first = fit(make_learn(cbs=cbs), 2)
    assert loss.passes == pytest.approx(2)
    other = copy.deepcopy(first)
    fit(make_learn(cbs=cbs))
    assert loss.passes == pytest.approx(1)
    theirs = other.robust_loss.loss_func_of_training
    assert theirs is not loss and fit(other) and theirs.passes == pytest.approx(3)
    other.dls = make_dls(split_seed=1)
    assert fit(other) and theirs.passes == pytest.approx(1)

def test_nothing_is_remembered_while_rotations_are_learned_alone(make_learn):
    learn = fit(make_learn(cbs=[*robust_cbs('auto'), SESEMI(bs=6, rot_only=2)]), 3)
    assert learn.robust_loss.loss_func_of_training.passes == pytest.approx(1)

@pytest.mark.parametrize('classes', [1, 2, 10, 1000])
def test_corrected_cross_entropy_of_extreme_logits(classes):
    "The formula in double precision, and a gradient that is finite"
    torch.manual_seed(0)
    for scale in (0., 1., 30., 1e4):
        for rate in (0., .3, .5)[:1+2*(classes > 2)]:
            loss,pred = ForwardCorrection(),(scale*torch.randn(64, classes)).requires_grad_()
            loss.begin(64, 'cpu')
            loss.rate,y = rate,torch.randint(classes, (64,))
            got = loss(pred, indexed(TensorCategory(y), range(64)), reduction='none')
            p = pred.detach().double().softmax(1)[range(64),y]
            want = -((1-rate)*p + rate*(1-p)/max(1, classes-1)).log()
            torch.testing.assert_close(got.double()[want < 80], want[want < 80], atol=3e-3 if scale > 1e3 else 1e-4, rtol=1e-4) # float32 cancels there
            got.sum().backward()
            assert got.isfinite().all() and pred.grad.isfinite().all()

@pytest.mark.parametrize('classes', [2, 10])
def test_cross_entropy_corrected_by_class_of_extreme_logits(classes):
    "The formula in double precision, and a gradient that is finite, also where a label is never given"
    torch.manual_seed(0)
    given = torch.rand(classes, classes, dtype=torch.double)*(torch.rand(classes, classes) < .5)
    T = .5*torch.eye(classes, dtype=torch.double) + .5*torch.nn.functional.normalize(given + 1e-9*torch.eye(classes), p=1, dim=1)
    for scale in (0., 1., 30., 1e4):
        loss,pred,y = ForwardCorrection(),(scale*torch.randn(64, classes)).requires_grad_(),torch.randint(classes, (64,))
        loss.begin(64, 'cpu')
        loss.matrix = T.float()
        got = loss(pred, indexed(TensorCategory(y), range(64)), reduction='none')
        want = -(pred.detach().double().softmax(1)*T[:,y].T).sum(1).log()
        torch.testing.assert_close(got.double()[want < 80], want[want < 80], atol=3e-3 if scale > 1e3 else 1e-4, rtol=1e-4)
        got.sum().backward()
        assert got.isfinite().all() and pred.grad.isfinite().all()

@pytest.mark.parametrize('n,k,seen', [(400,5,400), (400,5,250), (60,30,60), (7,3,0)])
def test_labels_are_counted_class_by_class(n, k, seen):
    "The same image by image"
    rng = np.random.default_rng(n+seen)
    p,y = rng.dirichlet([.3]*k, n)*rng.uniform(.3, 1, (n,1)),rng.integers(0, k, n)
    p[rng.permutation(n)[seen:]] = 0
    want,labels = np.zeros((k,k)),torch.tensor(np.where(p.sum(1) > 0, y, -1))
    for c in range(k):
        of_class = sorted([i for i in range(n) if p[i].sum() and p[i].argmax() == c], key=lambda i: -p[i].max()/p[i].sum())
        for i in of_class[:max(6, int(.2*len(of_class)))]: want[c,y[i]] += 1
    got = labels_by_class(torch.tensor(p), labels, .2, 6)
    assert got.tolist() == want.tolist() and (want.sum() > 0) == (seen > 0)
    assert 0 <= share_by_class(got) < 1 and torch.allclose(transition(got).sum(1), torch.ones(k))
    if not seen: assert np.isnan(share_of_wrong_labels(torch.tensor(p), labels))

@pytest.mark.cell('Robust losses', 'wrong labels that follow the class: forward correction finds the matrix, and no matrix where they are '
                                   'drawn from all classes; resumed bit for bit')
@pytest.mark.parametrize('after', [True, False])
def test_wrong_labels_that_follow_the_class(after):
    set_seed(0)
    x = torch.randn(1500, 2)
    true = ((x[:,1].atan2(x[:,0])/torch.pi+1)*2).long().clamp(max=3)
    given = torch.where(torch.rand(1500) < .4, (true + (1 if after else torch.randint(1, 4, (1500,))))%4, true)
    ds = [(x[i],TensorCategory(given[i])) for i in range(1500)]
    def learner(**kwargs):
        set_seed(0)
        return Learner(DataLoaders(DataLoader(ds, bs=50, shuffle=True), DataLoader(ds, bs=500)),
                       torch.nn.Sequential(torch.nn.Linear(2,128), torch.nn.ReLU(), torch.nn.Linear(128,4)), loss_func=CrossEntropyLossFlat(),
            cbs=RobustLoss(ForwardCorrection(surest=.2, **kwargs)))
    learn = learner()
    with learn.no_bar(), learn.no_logging(): learn.fit(6, 3e-3)
    loss = learn.robust_loss.loss_func_of_training
    if not after:
        assert loss.matrix is None and .2 < loss.wrong_labels < .6
        one_rate = learner(by_class=None)
        with one_rate.no_bar(), one_rate.no_logging(): one_rate.fit(6, 3e-3)
        assert all(torch.equal(p, q) for p,q in zip(learn.model.parameters(), one_rate.model.parameters()))
    else:
        T = 2*loss.matrix - torch.eye(4) # half of it is believed
        assert all(T[i].argsort(descending=True)[:2].tolist() == [i,(i+1)%4] and .2 < T[i,(i+1)%4] < .6 for i in range(4))
    other = ForwardCorrection(surest=.2) # goes on from what a checkpoint holds
    other.load_state_dict(copy.deepcopy(loss.state_dict()))
    for o in (loss,other): o.begin(1500, 'cpu')
    assert loss.rate == other.rate and (torch.equal(loss.matrix, other.matrix) if after else other.matrix is None)

def test_very_sure_predictions_keep_their_labels():
    "All other classes have the least probability there is; which one is the label is known all the same"
    rng = np.random.default_rng(0)
    true = torch.tensor(rng.integers(0, 10, 3000))
    y = torch.where(torch.tensor(rng.random(3000) < .3), torch.tensor(rng.integers(0, 10, 3000)), true)
    loss = ForwardCorrection(surest=.5)
    loss.begin(3000, 'cpu')
    loss(F.one_hot(true, 10)*30., indexed(TensorCategory(y), range(3000)))
    loss.passes = 1.
    loss.begin(3000, 'cpu')
    assert loss.matrix is None and loss.wrong_labels == pytest.approx(.27, abs=.05) and loss.label_matrix.diag().max() < .9

def test_an_epoch_of_nan_is_forgotten(make_learn):
    loss = ForwardCorrection()
    for logits in (float('nan'),1.):
        loss.begin(4, 'cpu')
        res = loss(torch.eye(4)*logits, indexed(TensorCategory([0,1,2,3]), range(4)))
        loss.passes += 1
    assert loss.rate == 0 and loss.matrix is None and res.isfinite()

@pytest.mark.parametrize('shown,sizes', [((1,1,1), None), ((6,3,1), [49.8,24.9,8.3]), (None, [60,20,3])])
def test_classes_are_as_large_as_they_are_shown(shown, sizes):
    "A loader with weights shows them otherwise than they are"
    n = torch.tensor([60,20,3])
    labels = torch.repeat_interleave(torch.arange(3), n)
    weights = None if shown is None else (torch.tensor(shown)/sum(shown)/n)[labels]
    loss = ForwardCorrection()
    loss.begin(83, 'cpu', weights=weights)
    loss(torch.randn(83, 3), indexed(TensorCategory(labels), range(83)))
    loss.begin(83, 'cpu', weights=weights)
    assert loss.sizes is None if sizes is None else loss.sizes.tolist() == pytest.approx(sizes, abs=1e-3)
    assert (loss.rarer is None) == (sizes is None)

@pytest.mark.cell('Robust losses', 'the preset with weighted_dataloaders: classes are as large as they are shown')
@pytest.mark.parametrize('weighted', [True,False])
def test_the_preset_knows_how_often_classes_are_shown(weighted):
    labels = torch.tensor([0]*48+[1]*12)
    ds = [(torch.rand(3,32,32),TensorCategory(o)) for o in labels]
    torch.manual_seed(0)
    train = WeightedDL(ds, bs=10, wgts=(1/labels.bincount()[labels]).tolist() if weighted else None, shuffle=True)
    loss = ForwardCorrection()
    fit(Learner(DataLoaders(train, DataLoader(ds[:10], bs=10)), tiny_model(2), loss_func=CrossEntropyLossFlat(), cbs=RobustLoss(loss)), 9)
    assert loss._seen[1].ge(0).sum() >= 57 # else sizes would be None all the same
    assert (loss.sizes is None) == weighted

def test_mixed_labels_need_a_loss_that_says_that_they_are_numbers(make_learn):
    for loss,name in ((F.cross_entropy,'cross_entropy'), (torch.nn.CrossEntropyLoss(label_smoothing=.1),'CrossEntropyLoss')):
        for mix in (MixUp,CutMix):
            with pytest.raises(InputError, match=f'{name} has not: for cross-entropy take CrossEntropyLossFlat'): fit(make_learn(cbs=[RobustLoss(loss), mix()]))
        fit(make_learn(cbs=RobustLoss(loss)))
    fit(make_learn(cbs=[RobustLoss(CrossEntropyLossFlat()), MixUp()]))

def test_steps_of_a_loader_that_has_a_length_of_its_own():
    ds = [(torch.rand(3,32,32),TensorCategory(i%3)) for i in range(32)]
    train = PartialDL(ds, bs=8, partial_n=16, shuffle=True, drop_last=True)
    learn = Learner(DataLoaders(train, DataLoader(ds, bs=8)), tiny_model(), loss_func=CrossEntropyLossFlat(), cbs=StepsPerEpoch(5))
    with pytest.raises(InputError, match='PartialDL has one of its own'): fit(learn)
    assert train.n == 32 and len(train) == 2 and 'get_idxs' not in vars(train)

@pytest.mark.cell('Robust losses', 'the preset with classes of unequal size: rare ones are boosted in the targets, from twice the labels on')
@pytest.mark.parametrize('sizes,boosted', [((20,10,10), False), ((21,10,10), True), ((60,20,3), True), ((20,20,0), False)])
def test_rare_classes_are_boosted(sizes, boosted):
    y = indexed(TensorCategory(torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))), range(sum(sizes)))
    torch.manual_seed(0)
    passes,got = [torch.randn(sum(sizes), 3) for _ in range(3)],{}
    for boost in (10.,1.):
        loss = ForwardCorrection(lam=3., takeover=(0,1), boost=boost)
        for n,pred in enumerate(passes):
            loss.begin(sum(sizes), 'cpu')
            assert n or loss.rarer is None
            res,loss.passes = loss(pred, y, reduction='none'),n+1.
        other = ForwardCorrection(boost=boost) # goes on from a checkpoint
        other.load_state_dict(loss.state_dict())
        for o in (loss,other): o.begin(sum(sizes), 'cpu')
        assert str(loss.rarer) == str(other.rarer)
        got[boost] = res,loss.targets[:,:-1],loss.rarer
    assert all(torch.equal(a, b) != boosted for a,b in zip(got[10.][:2], got[1.][:2]))
    assert got[1.][2] is None and (got[10.][2] is not None) == boosted
    if not boosted: return
    mean = {k:v[1].mean(0) for k,v in got.items()}
    assert mean[10.][0] < mean[1.][0] and mean[10.][2] > mean[1.][2]
    rarer = got[10.][2].exp()
    assert rarer.tolist() == pytest.approx([min(10, sizes[0]/o) for o in sizes])

@pytest.mark.cell('Robust losses', 'the preset with classes of unequal size: regularisation comes the later, the fewer labels look wrong')
@pytest.mark.parametrize('wrong,sizes,taken', [(0, (900,100), 0.), (.125, (900,100), .3125), (.25, (900,100), .5), (0, (500,500), .5), (.25, (500,500), .5)])
def test_regularisation_of_unequal_classes_waits_for_wrong_labels(wrong, sizes, taken):
    true = torch.repeat_interleave(torch.arange(2), torch.tensor(sizes))
    flipped = torch.arange(1000)%40 < 40*wrong # as many of each class
    y = indexed(TensorCategory(torch.where(flipped, 1-true, true)), range(1000))
    loss = ForwardCorrection(lam=3., takeover=(0,4), doubt=(0,4), surest=1., by_class=None) # all images are asked
    for _ in range(2):
        loss.begin(1000, 'cpu')
        got,loss.passes = loss(F.one_hot(true)*9.-4, y, reduction='none'),loss.passes+1
    other = ForwardCorrection(lam=3., takeover=(0,4), doubt=(0,4), surest=1., by_class=None) # goes on from a checkpoint
    other.load_state_dict(loss.state_dict())
    for o in (loss,other):
        o.begin(1000, 'cpu')
        assert (o.taken,o.doubted) == pytest.approx((taken,taken), abs=1e-6)
        assert o.rate == pytest.approx((1-taken)*.5*min(wrong, .5), abs=1e-6)
    if not wrong and not taken: assert torch.allclose(got, F.cross_entropy(F.one_hot(true)*9.-4, y, reduction='none'), atol=1e-5) # plain training

def test_classes_of_like_size_of_which_few_images_were_seen():
    "By chance the sizes of what was seen differ; a network with another number of outputs goes on without"
    y = indexed(TensorCategory(torch.arange(64)%10), range(64))
    y[:40] = 0
    loss = ForwardCorrection(lam=3.)
    for n,rest in ((1000,False),(64,True)):
        for _ in range(2):
            loss.begin(n, 'cpu')
            loss(torch.randn(64, 10), y)
            loss.passes = n//64+1.
        assert (loss.rarer is not None) == rest
    assert loss(torch.randn(64, 12), y).isfinite() and loss.rarer is None

def test_regularisation_after_the_correction_is_that_of_elr(make_learn):
    learn = fit(make_learn(cbs=RobustLoss(ForwardCorrection(lam=3., takeover=(0,1e-6)))), 2)
    assert learn.robust_loss.loss_func_of_training.taken == 1 # in the second epoch; the first is plain cross-entropy
    for loss,cols in ((ELR(), 3), (ForwardCorrection(lam=3.), 4)): # the same targets, the same loss
        torch.manual_seed(0)
        loss.begin(4, 'cpu')
        loss.taken = 1.
        values = [loss(torch.randn(4,3), indexed(TensorCategory([0,1,2,0]), range(4))).item() for _ in range(3)]
        assert loss.targets.shape == (4,cols)
        if cols == 3: want = values
    assert values == pytest.approx(want, abs=2e-3)

def test_one_class(mini, tmp_path):
    for split in ('train','val'): shutil.copytree(next((mini/split).iterdir()), tmp_path/'one'/split/'only')
    res = run('sesemi-train', '--dataset', 'own', '--path', tmp_path/'one', '--epochs', 2, '--robust', 'auto', '--unlabeled', 'none', *small, '--bs', 4)
    assert res.returncode == 2 and 'one class only' in res.stderr

@pytest.mark.parametrize('name', every)
def test_on_the_command_line(mini, name):
    res = run('sesemi-train', '--path', mini, '--epochs', 1, '--robust', name, '--unlabeled', 'none', *small)
    assert res.returncode == 0 and last(res)['method'] == method_title(name)
    if name == 'elr': assert 'choose one of none, gce' in run('sesemi-train', '--path', mini, '--robust', 'lion', *small).stderr

# -- selection and average
class Look(Callback):
    "What SESEMI turns and what the labels count, epoch by epoch"
    order = 90
    def before_fit(self): self.rejected,self.items,self.own = [],[],[]
    def after_train(self):
        self.rejected.append(chosen_labels(self.learn).rejected.clone())
        self.items.append(len(self.learn.sesemi._stream.dl.items if hasattr(self.learn.sesemi._stream.dl, 'items') else self.learn.sesemi._stream.dl.dataset))

@pytest.mark.cell('Robust losses', 'rejected images, and no others, are the unlabeled images of SESEMI from epoch to epoch')
def test_rejected_images_are_turned(make_learn):
    loss = SmallLoss(start=.3)
    learn = fit(make_learn(cbs=[RobustLoss(loss), SESEMI(rejected_items, bs=2), Look()]), 4)
    counts = [int(o.sum()) for o in learn.look.rejected]
    assert counts[:2] == [0,0] and max(counts) > 0 and traces(learn) == CLEAN
    assert learn.look.items == [n if n >= 8 else 48 for n in counts]
    loss.rejected = torch.zeros(48, dtype=torch.bool)
    loss.rejected[[3,5,7,8,11,12,13,20,21]] = True
    assert rejected_items(learn) == [learn.dls.train_ds.items[i] for i in (3,5,7,8,11,12,13,20,21)]
    with pytest.raises(InputError, match='no images are rejected'): fit(make_learn(cbs=SESEMI(rejected_items)))

def test_too_few_rejected_images_for_the_stream(make_learn):
    loss = SmallLoss(start=0.)
    learn = make_learn(cbs=[RobustLoss(loss), SESEMI(rejected_items, bs=40), Look()])
    assert fit(learn, 3).look.items == [48]*3
    loss.rejected[:] = True
    assert len(rejected_items(learn, {1,2,3})) == 3 # all that are allowed

@pytest.mark.cell('Robust losses', 'another callback evaluates in the middle of a fit: nothing is switched off')
def test_evaluation_in_the_middle(make_learn):
    class Evaluates(Callback):
        order = 50
        def after_epoch(self):
            if not self.learn.lock.locked(): self.learn.get_preds(ds_idx=1), self.learn.validate()
    # fastai's Recorder forgets its epochs there
    learn = fit(make_learn(cbs=[RobustLoss(SmallLoss(start=0.)), FixMatch(tau=.3), SESEMI(), EMA(), Memorisation(), LabelReport(), Evaluates()]), 3)
    assert learn.fix_match.n_images > 0 and len(learn.memorisation.history) == 3 and all(0 < o['changed'] <= 1 for o in learn.memorisation.history)
    assert learn.label_report.epochs == 3

@pytest.mark.cell('Robust losses', 'get_preds(with_loss=True) in the middle of training: the loss of each image by the Learner\'s own loss')
@pytest.mark.parametrize('own', [CrossEntropyLossFlat(), F.cross_entropy])
@pytest.mark.parametrize('mixup', [(), (MixUp,)])
def test_losses_of_images_in_the_middle(make_learn, own, mixup):
    class Looks(Callback):
        order = 70
        def after_step(self):
            if self.learn.lock.locked(): return
            probs,targs,losses = self.learn.get_preds(ds_idx=1, with_loss=True, act=noop)
            assert torch.allclose(losses.as_subclass(torch.Tensor), F.cross_entropy(probs, targs.as_subclass(torch.Tensor), reduction='none'), atol=1e-5)
            assert losses.shape == targs.shape
            self.looked,self.loss_of_training = True,self.learn.loss_func
            raise CancelFitException
    learn = make_learn(loss_func=own, cbs=[RobustLoss(GCE()), *(o() for o in mixup), Looks()])
    fit(learn, 1)
    assert learn.looks.looked and learn.loss_func is own and getattr(own, 'reduction', 'mean') == 'mean'
    if not mixup: assert learn.looks.loss_of_training.reduction == 'mean'

class Overflow(Callback):
    "One batch of logits that are no numbers, and no step where the loss is none, as in fp16"
    order = 5
    def before_fit(self): self.n,self.skipped = 0,0
    def after_pred(self):
        self.n += self.training
        if self.training and self.n == 3: self.learn.pred = self.learn.pred*float('nan')
    def before_step(self):
        if self.learn.loss_grad.isfinite(): return
        self.skipped += 1
        raise CancelStepException

@pytest.mark.cell('Robust losses', 'one batch that overflows costs its step and no more')
@pytest.mark.parametrize('name', every)
def test_an_overflow_is_forgotten(make_learn, name):
    robust = robust_cbs(name)
    if name == 'auto': robust[0].loss_func_of_training.takeover,robust[0].loss_func_of_training.doubt = (0,2),(0,1)
    learn = fit(make_learn(cbs=[*robust, LabelReport(), Overflow()]), 3)
    assert learn.overflow.skipped == 1 and len(learn.label_report.frame()) == 48

@pytest.mark.cell('Robust losses', 'lr_find puts the weights back')
@pytest.mark.parametrize('name', every)
def test_lr_find(make_learn, name):
    learn = make_learn(cbs=[*robust_cbs(name), LabelReport(), Memorisation(), Predictions()])
    before = copy.deepcopy(learn.model.state_dict())
    with learn.no_bar(): learn.lr_find(num_it=10, show_plot=False) # more than an epoch has
    assert all(torch.equal(a, b) for a,b in zip(before.values(), learn.model.state_dict().values())) and not learn.predictions.last

def test_another_network(make_learn):
    learn = fit(make_learn(cbs=[RobustLoss(ELR), LabelReport()]), 2) # a class does, as with `cbs=`
    learn.model[-1] = torch.nn.Linear(learn.model[-1].in_features, 5)
    fit(learn)
    assert learn.robust_loss.loss_func_of_training.targets.shape == (48,5) and learn.label_report.epochs == 1
    learn.model = make_learn().model
    fit(learn)
    assert learn.label_report.epochs == 1

def test_a_validation_that_is_cut_short_leaves_no_predictions(make_learn, make_dls):
    learn = fit(make_learn(dls=make_dls(val_bs=4), cbs=Predictions()))
    df = learn.predictions.frame()
    assert [o.split('/')[-2] for o in df.path] == df.label.tolist() and len(df) == 12
    fit(learn, cbs=ShortEpochCallback(.3))
    with pytest.raises(InputError, match='cut short'): learn.predictions.frame()

def test_no_pseudo_labels_while_rotations_are_learned_alone(make_learn):
    class FirstEpoch(Callback):
        def after_epoch(self): raise CancelFitException
    for order in (1,-1):
        loss = SmallLoss(start=0.)
        learn = fit(make_learn(cbs=[RobustLoss(loss), *[FixMatch(tau=.3), SESEMI()][::order]]))
        loss.losses = torch.linspace(.1, 3, 48)
        learn.sesemi.rot_only,before = 1,learn.model[-1].weight.clone()
        with learn.no_bar(), learn.no_logging(): learn.fit(2, wd=0., cbs=FirstEpoch())
        assert loss.rejected.any() and learn.fix_match.n_images == 0 and torch.equal(learn.model[-1].weight, before)

@pytest.mark.parametrize('mixup', [[], [MixUp]])
def test_evaluation_in_the_middle_of_an_epoch_has_the_own_loss(make_learn, mixup):
    class Evaluates(Callback):
        order,run_valid = 50,False
        def after_step(self):
            if self.iter: return
            before = self.learn.loss_func
            logits,targs = self.learn.get_preds(ds_idx=1, act=noop)
            self.seen = self.learn.validate()[0],F.cross_entropy(logits, targs.as_subclass(torch.Tensor)).item()
            assert self.learn.loss_func == before
            raise CancelFitException # fastai's Learner cannot train on after that
    learn = fit(make_learn(cbs=[RobustLoss(GCE()), Evaluates(), *[cb() for cb in mixup]]))
    assert learn.evaluates.seen[0] == pytest.approx(learn.evaluates.seen[1], abs=1e-3) and isinstance(learn.loss_func, type(make_learn().loss_func))

def test_a_copied_learner_remembers_for_itself(make_learn):
    learn = fit(make_learn(cbs=RobustLoss(SmallLoss())))
    before,other = chosen_labels(learn).losses.clone(),copy.deepcopy(learn)
    fit(other)
    assert torch.equal(before, chosen_labels(learn).losses) and not torch.equal(before, chosen_labels(other).losses)

@pytest.mark.parametrize('loss', [ELR, SmallLoss])
def test_other_data_of_the_same_length(make_learn, make_dls, loss):
    learn = fit(make_learn(cbs=[RobustLoss(loss()), LabelReport()]))
    mine = learn.robust_loss.loss_func_of_training
    fit(learn)
    assert learn.label_report.epochs == 2
    seen = []
    class First(Callback):
        order = ItemIndex.order-1
        def before_epoch(self): seen.append(getattr(mine, mine.remembers))
    learn.dls = make_dls(split_seed=1)
    fit(learn, cbs=First())
    assert seen[0] is None and learn.label_report.epochs == 1

def test_what_is_remembered_goes_to_the_device_of_the_data():
    for loss,state in ((SmallLoss(), dict(losses=torch.zeros(5))), (ELR(), dict(targets=torch.zeros(5,3)))):
        loss.load_state_dict(state)
        loss.begin(5, 'meta')
        assert getattr(loss, loss.remembers).device.type == 'meta'

@pytest.mark.parametrize('cb', [ItemIndex, Memorisation, LabelReport, lambda: RobustLoss(ELR())])
def test_labels_that_are_no_classes(cb):
    from fastai.vision.all import DataLoader, DataLoaders, Learner, MSELossFlat, TensorBase
    ds = [(torch.rand(3),torch.rand(2)) for _ in range(16)]
    learn = Learner(DataLoaders(*(DataLoader(ds, bs=8) for _ in range(2))), torch.nn.Linear(3, 2), loss_func=MSELossFlat(), cbs=cb())
    with pytest.raises(InputError, match='one class for each image'): fit(learn)

def test_report_of_one_fit_only(make_learn):
    report = LabelReport()
    learn = fit(make_learn(), 2, cbs=report)
    assert len(report.frame()) == 48 and not hasattr(learn, 'label_report')

def test_a_function_gives_other_images_each_epoch(make_learn, make_dls):
    from fastai.vision.all import DataLoader
    dls,asked = make_dls(),[]
    def source(learn):
        asked.append(learn.epoch)
        return [dls.train_ds.items[:20], dls.train.new(bs=2), list(dls.valid_ds.items)][learn.epoch]
    learn = fit(make_learn(cbs=SESEMI(source, bs=2)), 3)
    assert asked == [0,1,2] and traces(learn) == CLEAN
    for bad in ('valid','batch'):
        with pytest.raises(InputError, match='gives images'): fit(make_learn(cbs=SESEMI(lambda learn: bad)))

def test_rejected_labels_have_no_gradient(make_learn):
    "With the labels of some images scrambled, an epoch in which they are rejected ends with the same weights"
    def weights(scramble):
        loss = SmallLoss(start=0., beta=.5)
        loss.losses = torch.where(torch.arange(48) < 10, 5., .1) + .01*torch.rand(48, generator=torch.Generator().manual_seed(0))
        class Scramble(Callback):
            order = ItemIndex.order+1
            def before_batch(self):
                if self.training and scramble: self.learn.yb[0][self.learn.yb[0].idx < 10] = 0
        return [p.clone() for p in fit(make_learn(cbs=[RobustLoss(loss), Scramble()]), 1).model.parameters()]
    assert all(torch.equal(a, b) for a,b in zip(weights(False), weights(True)))

@pytest.mark.cell('Robust losses', 'the average of the weights is evaluated, saved, exported and trained on; its network is the '
                                   'optimizer\'s own while it trains')
def test_average_is_what_others_see(make_learn, tmp_path):
    from fastai.vision.all import SaveModelCallback
    learn = fit(make_learn(cbs=[EMA(), SESEMI()], opt_func=ranger), 3, cbs=SaveModelCallback('valid_loss', every_epoch=True, fname='m'))
    last = list(learn.recorder.values[-1][1:3])
    assert list(learn.validate()) == pytest.approx(last, abs=1e-6) and traces(learn) == CLEAN
    now = [p.clone() for p in learn.model.parameters()]
    learn.load('m_2')
    assert all(torch.equal(a, b) for a,b in zip(now, learn.model.parameters()))
    learn.export('e.pkl')
    assert b'sesemi_fastai' not in (tmp_path/'e.pkl').read_bytes()
    fit(copy.deepcopy(learn))
    with pytest.raises(KeyboardInterrupt): fit(learn, cbs=Boom(KeyboardInterrupt(), 'before_step'))
    with learn.no_bar(): learn.lr_find(show_plot=False, num_it=3)

def test_fixmatch_leaves_the_labelled_images_alone(make_learn):
    "Its random numbers are its own: with a weight of nothing, training is what it is without it"
    def weights(*cbs):
        torch.manual_seed(0)
        return [p.clone() for p in fit(make_learn(model=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(.2), torch.nn.Linear(3*32*32, 3)),
            cbs=[RobustLoss(SmallLoss(start=0.)), *cbs]), 2).model.parameters()]
    fix = FixMatch(tau=.3, weight=0.)
    assert all(torch.equal(a, b) for a,b in zip(weights(), weights(fix))) and fix.n_images > 0

def test_fixmatch_begins_anew_with_another_learner(make_learn):
    fix = FixMatch(tau=.3)
    def losses(): return fit(make_learn(cbs=[RobustLoss(SmallLoss(start=0.)), fix]), 2).recorder.losses
    one = losses()
    assert fix.n_images > 0 and one == losses()

def _rejecting(n):
    loss = SmallLoss(start=0.)
    loss.losses = torch.where(torch.arange(n) < n//2, .1, 3.)
    return RobustLoss(loss)

@pytest.mark.parametrize('stretch', [1, 4])
def test_fixmatch_wants_pixels(stretch):
    "Images that are not normalised by fastai have to be 0 to 1"
    ds = [(stretch*torch.rand(3,16,16),TensorCategory(i%2)) for i in range(16)]
    dls = DataLoaders(DataLoader(ds, bs=16), DataLoader(ds, bs=16))
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3,2))
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), cbs=[_rejecting(16), FixMatch(tau=.3)])
    if stretch == 1: fit(learn)
    else:
        with pytest.raises(InputError, match='pixels from 0 to 1.*normalise with fastai'): fit(learn)

def test_fixmatch_on_loaders_of_pytorch():
    loader = torch.utils.data.DataLoader([(torch.rand(3,32,32),torch.tensor(i%3)) for i in range(16)], batch_size=8)
    learn = Learner(DataLoaders(loader, loader), tiny_model(), loss_func=CrossEntropyLossFlat(), cbs=robust_cbs('fixmatch'))
    with pytest.raises(InputError): fit(learn)

def test_true_labels_that_are_no_class_names(make_learn):
    names = lambda learn: [f.parent.name for f in learn.dls.train_ds.items]
    learn = make_learn()
    for true in ([o.upper() for o in names(learn)], torch.zeros(48)):
        with pytest.raises(InputError, match="true label '.*' is no class name: the classes are"): fit(make_learn(cbs=Memorisation(true)))
    with pytest.raises(InputError, match='give the class name of each'): fit(make_learn(cbs=Memorisation(5)))
    learn = make_learn(cbs=Memorisation(pd.Series(names(learn))))
    assert fit(learn).memorisation.history[-1]['wrong_as_true'] is None
    assert None not in learn.recorder.values[-1] # of which TensorBoard would know nothing to do

def test_stop_before_memorising(make_learn):
    from fastai.vision.all import EarlyStoppingCallback
    learn = fit(make_learn(cbs=Memorisation()), 8, cbs=EarlyStoppingCallback('changed', comp=np.less, patience=1))
    c = [o['changed'] for o in learn.memorisation.history]
    assert c[0] == 1 and len(c) < 8 and c[-1] >= min(c[:-1]) and all(a > b for a,b in zip(c[:-1], c[1:-1]))

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
    assert df.as_given.between(0, 1).all() and 'wrong_as_true' not in df and df.changed[0] == 1 and df.accuracy.notna().all() and traces(learn) == CLEAN
    assert ('rot_loss' in df) == (SESEMI in cbs) and (SESEMI not in cbs or df.rot_loss.between(.3, 5).all())
    assert len(learn.validate()) == 2 and len(learn.memorisation.history) == 2
    learn.memorisation.true = ['class0']*48
    fit(learn)
    assert 0 <= learn.memorisation.history[-1]['wrong_as_given'] <= 1

@pytest.mark.cell('Robust losses', 'losses without memory as loss_func=: MixUp, lr_find, get_preds, predict, show_results, top losses, export')
@pytest.mark.parametrize('loss', [GCE, SCE, Bootstrap, lambda: Bootstrap(.8, hard=True)], ids=['gce','sce','bootstrap','bootstrap_hard'])
def test_as_the_loss_of_a_learner(make_learn, tmp_path, loss):
    learn = make_learn(loss_func=loss(), cbs=MixUp())
    with learn.no_bar(): learn.lr_find(show_plot=False, num_it=5)
    fit(learn, 2)
    with Quiet(learn):
        probs,targs,classes = learn.get_preds(with_decoded=True)
        each = learn.get_preds(with_loss=True)[2]
        top = ClassificationInterpretation.from_learner(learn).top_losses(1)[0].item()
        learn.show_results()
    assert torch.allclose(probs.sum(1), torch.ones(len(probs))) and (probs >= 0).all() and torch.equal(classes, probs.argmax(1))
    assert each.shape == (12,) and each.mean().item() == pytest.approx(learn.validate()[0], rel=1e-4) and top == pytest.approx(each.max().item(), rel=1e-4)
    item = learn.dls.valid_ds.items[0]
    learn.export('e.pkl')
    for o in (learn, load_learner(tmp_path/'e.pkl')):
        with o.no_bar(): assert o.predict(item)[0] == learn.dls.vocab[classes[0]]

@pytest.mark.parametrize('cbs', [[], [LabelReport]], ids=['alone','with an index'])
@pytest.mark.parametrize('loss', [ELR, ForwardCorrection, SmallLoss])
def test_a_loss_that_remembers_is_no_loss_func(make_learn, loss, cbs):
    says = rf'cbs=RobustLoss\({loss.__name__}\(\)\)'
    with pytest.raises(InputError, match=says): fit(make_learn(loss_func=loss(), cbs=[o() for o in cbs]))
    used = fit(make_learn(cbs=RobustLoss(loss()))).robust_loss.loss_func_of_training
    with pytest.raises(InputError, match=says): fit(make_learn(loss_func=used, cbs=[o() for o in cbs]))

def test_labels_of_tabular_loaders_and_predictions_of_another_shape():
    pred,y = torch.randn(4,3),torch.tensor([0,1,2,0])
    for loss in (GCE(), SCE(), Bootstrap(), Bootstrap(.8, hard=True)):
        assert torch.equal(loss(pred, y[:,None].to(torch.int8)), loss(pred, y))
        with pytest.raises(InputError, match='one class an image'): loss(pred[:,:,None], y[:,None])

def test_settings_of_the_correction():
    ForwardCorrection(takeover=(30,60)) # without regularisation nothing is doubted
    for kw,says in ((dict(lam=3, takeover=(30,60)),'from 30 on'), (dict(takeover=('a','b')),'two numbers')):
        with pytest.raises(InputError, match=says): ForwardCorrection(**kw)

@pytest.mark.cell('Robust losses', 'another callback draws from the training loader in the middle of the pass (one_batch, show_batch): '
                                   'labels still know their image')
@pytest.mark.parametrize('workers', [0,2])
def test_a_batch_is_drawn_in_the_middle(make_learn, make_dls, workers):
    class Draws(Callback):
        def before_train(self): self.dls.train.one_batch()
        def after_batch(self):
            if self.training and self.iter in (0,2): self.dls.train.one_batch()
    dls = make_dls()
    dls.train.fake_l.num_workers = workers
    items = fit(make_learn(dls=dls, cbs=[ItemIndex(), Memorisation(), LabelReport(), Draws(), Items()])).items
    assert len(items.seen) == len({*items.seen}) == 48

@pytest.mark.cell('Robust losses', 'CutMix: the label is that of the larger part')
def test_the_larger_part_of_mixed_images(make_learn):
    class Parts(Callback):
        order = 90
        def before_fit(self): self.swapped = 0
        def after_loss(self):
            if not self.training: return
            mix = self.learn.cut_mix
            want = self.learn.yb[0] if mix.lam >= .5 else mix.yb1[0]
            assert torch.equal(self.learn.memorisation.idx, want.idx)
            assert torch.equal(self.learn.memorisation.labels.as_subclass(torch.Tensor), want.as_subclass(torch.Tensor))
            self.swapped += (mix.lam < .5).item()
    assert 0 < fit(make_learn(cbs=[Memorisation(), LabelReport(), CutMix(), Parts()]), 6).parts.swapped < 36

@pytest.mark.cell('Robust losses', 'MixUp, CutMix: what is remembered of an image follows a prediction by its part of the mixed image')
@pytest.mark.parametrize('mix', [MixUp,CutMix])
@pytest.mark.parametrize('loss', [lambda: ELR(beta=.6), lambda: ForwardCorrection(beta=.6, lam=3.)], ids=['ELR','auto'])
def test_targets_of_mixed_images(make_learn, mix, loss):
    "Batch by batch what the targets should be, image by image; the second of two mixed ones moves first, as fastai computes its loss first"
    want = torch.zeros(48, 3)
    class Follows(Callback):
        order = 90
        def after_loss(self):
            if not self.training: return
            m = self.learn.mix_up if mix is MixUp else self.learn.cut_mix
            least = 1e-4 if isinstance(loss(), ELR) else 1e-3/3
            p = self.pred.detach().softmax(1).clamp(least, 1-least)
            if not isinstance(loss(), ForwardCorrection): p = p/p.sum(1, keepdim=True)
            lam = m.lam.expand(len(p))
            for y,part in ((m.yb1[0],1-lam), (self.learn.yb[0],lam)):
                for i,of,q in zip(y.idx.tolist(), part.tolist(), p): want[i] = want[i] + .4*of*(q-want[i])
    learn = fit(make_learn(cbs=[RobustLoss(loss()), mix(), Follows()]), 2)
    targets = learn.robust_loss.loss_func_of_training.targets[:,:3]
    assert torch.allclose(targets, want, atol=1e-5) and want.min() > 0

def test_images_that_are_mixed_no_more_count_in_full(make_learn):
    "A callback may let MixUp rest in the last epochs; what it drew before does not count then"
    class Rests(Callback):
        order,parts = 90,()
        def before_epoch(self): self.learn.mix_up.run = self.epoch < 1
        def after_loss(self):
            if self.training: self.parts = (*self.parts, self.learn.yb[0].part)
    parts = fit(make_learn(cbs=[RobustLoss(ELR()), MixUp(), Rests()]), 2).rests.parts
    assert len(parts) == 12 and all(isinstance(o, torch.Tensor) for o in parts[:6]) and parts[6:] == (1.,)*6

def test_a_slice_of_labels_has_their_images_and_parts():
    y = indexed(TensorCategory([1,2,3]), [7,8,9])
    y.part = torch.tensor([.9,.6,.7])
    assert y[1:].idx.tolist() == [8,9] and y[1:].part.tolist() == pytest.approx([.6,.7]) and y.clone().part is y.part
    y.part = torch.tensor([.9])
    assert y[1:].part.tolist() == pytest.approx([.9]) and indexed(y, [1,2,3]).part == 1.

@pytest.mark.cell('Robust losses', 'epochs of rotations alone have no figures')
def test_rotations_alone_are_not_counted(make_learn):
    learn = fit(make_learn(cbs=[SESEMI(bs=4, rot_only=2), Memorisation()]), 4)
    names,values = list(learn.recorder.metric_names[1:-1]),learn.recorder.values
    changed = [row[names.index('changed')] for row in values]
    assert len(learn.memorisation.history) == 2 and all(np.isnan(changed[:2])) and changed[2] == 1 and 0 <= changed[3] <= 1

@pytest.mark.cell('Robust losses', 'labels that are numbers, with gaps in the true ones; a network with more outputs than classes')
def test_labels_that_are_numbers(make_learn, image_folder):
    files = get_image_files(image_folder)
    classes = sorted({o.parent.name for o in files})
    df = pd.DataFrame(dict(path=files, label=[classes.index(o.parent.name) for o in files]))
    df['true'] = df.label.astype(float)
    df.loc[:5, 'true'] = float('nan')
    df.loc[6:9, 'label'] = (df.label.loc[6:9]+1) % 3
    block = DataBlock((ImageBlock,CategoryBlock), get_x=ColReader('path'), get_y=ColReader('label'), splitter=IndexSplitter(range(48, 60)),
                      item_tfms=Resize(32))
    learn = fit(make_learn(model=tiny_model(5), dls=block.dataloaders(df, bs=8, num_workers=0), cbs=[LabelReport(), Memorisation(), Predictions()]))
    found = learn.label_report.frame()
    assert len(found) == 48 and truly_wrong(found).sum() == 4 and len(truly_wrong(found)) == 42 and {*found.suggested} <= {'0','1','2'}
    assert [o for o in found if o.startswith('p:')] == ['p:0','p:1','p:2']
    assert 0 < average_precision(found) <= 1 and learn.memorisation.history[0]['wrong_as_true'] is not None and len(learn.predictions.frame()) == 12

@pytest.mark.cell('Robust losses', 'labels that are not one class an image, too few outputs, a loss among callbacks: one line each')
@pytest.mark.parametrize('loss', [GCE, SCE, Bootstrap, ELR, ForwardCorrection, SmallLoss])
def test_wrong_labels_of_a_loss(make_learn, loss):
    pred = torch.randn(4, 3)
    for y in (torch.rand(4), torch.eye(3)[[0,1,2,0]], torch.tensor([0,1])):
        with pytest.raises(InputError, match='needs the number of one class'): loss()(pred, y)
    for y in ([0,1,2,3], [-1,0,1,2]):
        with pytest.raises(InputError, match='n_out=dls.c'): loss()(pred, torch.tensor(y))
    with pytest.raises(InputError, match='is a loss: among callbacks'): make_learn(cbs=loss())
    with pytest.raises(InputError, match='is a callback: give it as cbs='): fit(make_learn(loss_func=RobustLoss(loss())))
    with pytest.raises(InputError, match='n_out=dls.c'): fit(make_learn(model=tiny_model(2), cbs=RobustLoss(loss())))

def test_settings_that_make_no_sense():
    for wrong in (lambda: ELR(label_smoothing=2), lambda: SCE(float('nan')), lambda: RobustLoss(EMA()), lambda: robust_cbs(['elr','ema']),
                  lambda: GCE()(torch.zeros(1, 2), torch.tensor([0]), reduction='foo')):
        with pytest.raises(InputError): wrong()

@pytest.mark.parametrize('value', ['0.7', None, [1], float('nan'), float('inf'), 10**400])
@pytest.mark.parametrize('make,names', [(GCE,'q'), (SCE,'alpha beta log_zero'), (Bootstrap,'beta'), (ELR,'beta lam label_smoothing'),
    (ForwardCorrection,'beta surest trust lam by_class'), (SmallLoss,'start threshold beta'), (FixMatch,'tau weight seed'), (EMA,'decay'),
    (SESEMI,'weight rampup seed every rot_only turned bs size num_workers'), (lambda **kw: Checkpoint('there', **kw),'every keep'),
    (lambda **kw: accepted(pd.DataFrame(dict(path=['a'], suggested=['b'], score=[1.])), **kw),'threshold top')])
def test_settings_that_are_no_numbers(make, names, value):
    "One line that names the setting; None is a value of its own where the signature says so"
    for name in names.split():
        if value is None and name in ('decay','bs','size','num_workers','top','by_class'): make(**{name:None})
        else:
            with pytest.raises(InputError, match=f'^{name}=.*: give a (whole )?number$'): make(**{name:value})

@pytest.mark.cell('Robust losses', 'loaders of a plain dataset, without items or normalisation: FixMatch trains, rejected images for '
                                   'SESEMI are refused in one line')
def test_rejected_images_of_a_plain_dataset(tmp_path):
    ds = [(torch.rand(3, 32, 32), torch.tensor(i%3)) for i in range(24)]
    def learn(*cbs):
        return Learner(DataLoaders(*(DataLoader(ds, bs=8, shuffle=True) for _ in range(2))), tiny_model(), loss_func=CrossEntropyLossFlat(),
                       cbs=[RobustLoss(SmallLoss(start=0.)), *cbs], path=tmp_path)
    fit(fixed := learn(FixMatch(tau=.3)), 4)
    assert fixed.fix_match.norm is None and fixed.fix_match.n_images > 0
    with pytest.raises(InputError, match='has no items to turn'): fit(learn(SESEMI(rejected_items, bs=2)))

@pytest.mark.cell('Robust losses', 'labels of few bits (int8, int32): SmallLoss, as every loss')
def test_small_integers():
    pred = torch.randn(4, 3)
    for loss in (SmallLoss(), GCE()):
        if hasattr(loss, 'begin'): loss.begin(4, 'cpu')
        for dtype in (torch.int8, torch.int32):
            torch.testing.assert_close(loss(pred, torch.tensor([0,1,2,0], dtype=dtype)), loss(pred, torch.tensor([0,1,2,0])))

def test_several_processes_remember_an_image_that_both_have_seen(monkeypatch):
    "The mean of what they remember, instead of twice the change"
    from sesemi_fastai import robust
    before,a,b = torch.zeros(3, 2),torch.tensor([[1.,0],[0,0],[.5,.5]]),torch.tensor([[0.,0],[0,1],[.1,.9]])
    monkeypatch.setattr(robust, 'sum_over_ranks', lambda t: t + (b if t.ndim == 2 else (b != 0).any(1).float()))
    torch.testing.assert_close(robust._of_all_ranks(a, before), torch.tensor([[1.,0],[0,1],[.3,.7]]))

@pytest.mark.parametrize('cb', [Memorisation, LabelReport, lambda: RobustLoss(ELR())])
def test_labels_that_another_callback_has_changed(make_learn, cb):
    class Changes(Callback):
        order = 30
        def before_batch(self):
            if self.training: self.learn.yb = (self.yb[0].as_subclass(torch.Tensor).flip(0),)
    with pytest.raises(InputError, match='another callback has changed the labels'): fit(make_learn(cbs=[cb(), Changes()]))

@pytest.mark.cell('Robust losses', 'two input images: the list of labels; FixMatch is refused in one line')
def test_two_inputs(make_learn, image_folder):
    class Two(torch.nn.Module):
        def __init__(self): super().__init__(); self.net = tiny_model()
        def forward(self, a, b): return self.net(a) + self.net(b)
    df = pd.DataFrame(dict(path=get_image_files(image_folder)))
    df['label'] = [o.parent.name for o in df.path]
    block = DataBlock((ImageBlock,ImageBlock,CategoryBlock), n_inp=2, getters=[ColReader('path'), ColReader('path'), ColReader('label')],
                      splitter=IndexSplitter(range(48, 60)), item_tfms=Resize(32))
    learn = lambda *cbs: make_learn(model=Two(), dls=block.dataloaders(df, bs=8, num_workers=0), cbs=[*cbs])
    found = fit(learn(LabelReport())).label_report.frame()
    assert len(found) == 48 and (found.label == [df.label[i] for i in found.item]).all()
    with pytest.raises(InputError, match='takes 2 inputs'): fit(learn(RobustLoss(SmallLoss()), FixMatch()))

@pytest.mark.cell('Robust losses', "class weights and label smoothing of the Learner's own loss, which training does without: a note")
@pytest.mark.parametrize('loss,says', [(CrossEntropyLossFlat(weight=torch.tensor([1.,5.,1.])), 'without the class weights of the Learner'),
    (LabelSmoothingCrossEntropyFlat(), 'without the label smoothing of the Learner'), (torch.nn.CrossEntropyLoss(label_smoothing=.1), 'label smoothing'),
    (CrossEntropyLossFlat(), '')],
                         ids=['weights','smoothing','smoothing of PyTorch','neither'])
def test_what_the_own_loss_had_is_told(make_learn, capsys, loss, says):
    learn = make_learn(cbs=[RobustLoss(GCE())])
    learn.loss_func = loss
    fit(learn, 1)
    told = [o for o in capsys.readouterr().err.splitlines() if 'does without' in o]
    assert len(told) == bool(says) and all(says in o for o in told)

@pytest.mark.parametrize('cb', [LabelReport, Memorisation, lambda: RobustLoss(ELR()), lambda: RobustLoss(GCE())], ids=['labels','memory','ELR','GCE'])
def test_fewer_images_than_a_batch(cb):
    ds = [(torch.rand(3, 32, 32), torch.tensor(i%3)) for i in range(6)]
    dls = DataLoaders(DataLoader(ds, bs=8, shuffle=True, drop_last=True), DataLoader(ds, bs=8))
    with pytest.raises(InputError, match='do not fill one batch of 8'): fit(Learner(dls, tiny_model(), loss_func=CrossEntropyLossFlat(), cbs=cb()))

def test_extras_that_training_has_itself_are_not_told(make_learn, capsys):
    weight = torch.tensor([1.,5.,1.])
    for own,loss in ((CrossEntropyLossFlat(label_smoothing=.1), ELR(label_smoothing=.1)),
                     (CrossEntropyLossFlat(weight=weight), torch.nn.CrossEntropyLoss(weight=weight))):
        learn = make_learn(cbs=[RobustLoss(loss)])
        learn.loss_func = own
        fit(learn, 1)
    assert 'does without' not in capsys.readouterr().err

@pytest.mark.cell('Robust losses', 'a network with more outputs than classes, or with outputs that it masks: the list is of the classes')
def test_outputs_that_are_no_classes(make_learn):
    class More(torch.nn.Module):
        def __init__(self, of): super().__init__(); self.net,self.of = tiny_model(),torch.tensor(of)
        def forward(self, x): return torch.cat([self.net(x), self.of.expand(len(x), 1)], 1)
    for of in (50., -torch.inf):
        df = fit(make_learn(model=More(of), cbs=[LabelReport()]), 1).label_report.frame()
        assert len(df) == 48 and df.margin.abs().max() < 40 and (df.label != df.suggested).all()

def test_list_of_an_older_checkpoint(capsys):
    cb = LabelReport()
    cb.load_state_dict(dict(total=torch.ones(4, 3), epochs=torch.ones(4, 1)))
    assert cb.total is None and cb.epochs == 0 and 'begins with the epochs that are still to come' in capsys.readouterr().err

@pytest.mark.parametrize('drop_last', [True, False])
def test_loaders_of_pytorch_are_refused_in_one_line(drop_last):
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self): return iter([(torch.rand(3, 32, 32), torch.tensor(0))])
    for ds in (Endless(), [(torch.rand(3, 32, 32), torch.tensor(0))]*3):
        dl = torch.utils.data.DataLoader(ds, batch_size=8, drop_last=drop_last)
        with pytest.raises(InputError, match="needs fastai's DataLoader"):
            fit(Learner(DataLoaders(dl, dl), tiny_model(), loss_func=CrossEntropyLossFlat(), cbs=LabelReport()))
