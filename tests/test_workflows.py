"Workflows that test_callback.py has no place for: networks, precision, losses, schedules, evaluation, exports, loggers"
import copy, json, os, random, subprocess, sys, warnings
import matplotlib; matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np, pytest, torch
from torch import nn
from fastai.vision.all import (Callback, ChannelsLast, ClassificationInterpretation, CSVLogger, CategoryBlock, DataBlock, DataLoader, DataLoaders,
    EarlyStoppingCallback, GradientAccumulation, GradientClip, ImageBlock,
                               LabelSmoothingCrossEntropyFlat, Learner, MixedPrecision, RandomSplitter, Resize, SGD, TensorBase, accuracy,
                               get_image_files, parent_label)
from sesemi_fastai.callback import SESEMI
from sesemi_fastai.checkpoint import Checkpoint, checkpoint_files
from sesemi_fastai.im2col import Im2col
from sesemi_fastai.labels import LabelReport
from sesemi_fastai.memory import Memorisation
from sesemi_fastai.precision import Autocast
from sesemi_fastai.losses import ELR
from sesemi_fastai.robust import RobustLoss
from sesemi_fastai.arch import make_model
from sesemi_fastai.weights import export_weights
from conftest import tiny_model
from test_callback import CLEAN, Quiet, fit, traces

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def states(m): return {k:v.clone() for k,v in m.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

# -- networks
@pytest.mark.cell('Learner', 'xresnet; torchvision resnet, resnext, densenet; timm convnext, resnet, vit')
@pytest.mark.parametrize('arch', ['xresnet18','resnet18','resnext50_32x4d','densenet121','convnext_atto','resnet10t','vit'])
@pytest.mark.parametrize('bn', ['separate','joint'])
def test_networks(make_learn, make_dls, arch, bn):
    import timm
    torch.manual_seed(0)
    model = timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, depth=2, num_classes=3) if arch == 'vit' else make_model(arch, 3)
    learn = make_learn(model=model, dls=make_dls(bs=24), cbs=SESEMI(bn=bn, bs=2), opt_func=SGD)
    before = states(model)
    fit(learn)
    assert np.isfinite(learn.recorder.values[0]).all() and traces(learn) == CLEAN
    moved = [k for k,v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert len(moved) > .8*len(before)

# -- precision
class Dtypes(Callback):
    "What the loss is computed from"
    order = SESEMI.order+1
    def after_pred(self): self.label = self.pred.dtype
    def after_loss(self): self.inside = torch.is_autocast_enabled('cpu')

@pytest.mark.cell('Precision', 'bf16 autocast on a CPU: learn.to_precision')
@pytest.mark.parametrize('bn', ['separate','joint'])
def test_bf16_on_a_cpu(make_learn, bn, monkeypatch):
    import sesemi_fastai.callback as cb
    seen,loss = [],cb.rotation_loss
    monkeypatch.setattr(cb, 'rotation_loss', lambda p,t: seen.append(p.dtype) or loss(p, t))
    learn = make_learn(cbs=[SESEMI(bn=bn), Dtypes()]).to_precision('bf16')
    assert isinstance(learn.autocast, Autocast) and learn.channels_last
    fit(learn, 2)
    assert learn.dtypes.label == torch.bfloat16 and learn.dtypes.inside and set(seen) == {torch.bfloat16}
    assert {p.dtype for p in learn.model.parameters()} == {torch.float32} and not torch.is_autocast_enabled('cpu')
    fp32 = fit(make_learn(cbs=SESEMI(bn=bn)), 2)
    assert float(learn.recorder.losses[0]) == pytest.approx(float(fp32.recorder.losses[0]), rel=.02) # later ones differ more, and on each CPU by another amount
    assert traces(learn) == CLEAN
    learn.export('e.pkl')
    assert b'sesemi_fastai' not in (learn.path/'e.pkl').read_bytes()
    assert traces(fit(copy.deepcopy(learn))) == CLEAN
    n = len(learn.cbs)
    assert not any(isinstance(cb, MixedPrecision) for cb in learn.to_precision('fp32').cbs) and len(learn.cbs) == n-2

@pytest.mark.parametrize('has', [True,False])
def test_bf16_that_a_cpu_only_emulates_is_said(make_learn, monkeypatch, has):
    monkeypatch.setattr('sesemi_fastai.precision._cpu_has_bf16', lambda: has)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        make_learn().to_precision('bf16')
        make_learn().to_precision()
    assert ['no bf16 instructions' in str(o.message) for o in told if o.category is UserWarning] == ([] if has else [True])

@pytest.mark.parametrize('precision', ['auto','bf16'])
@pytest.mark.parametrize('kind', ['three dimensions','loaders of PyTorch'])
def test_precision_of_networks_and_loaders_without_images(kind, precision):
    x = torch.randn(8,1,5,5,5) if kind == 'three dimensions' else torch.randn(8,1,5,5)
    data,conv = [(o,i%2) for i,o in enumerate(x)],nn.Conv3d if x.ndim == 5 else nn.Conv2d
    loader = DataLoader if kind == 'three dimensions' else torch.utils.data.DataLoader
    learn = Learner(DataLoaders(*(loader(data, 4) for _ in range(2))), nn.Sequential(conv(1,2,3), nn.Flatten(), nn.LazyLinear(2)),
                    loss_func=nn.CrossEntropyLoss())
    learn.model(x)
    assert np.isfinite(fit(learn.to_precision(precision)).recorder.values[-1]).all()

@pytest.mark.parametrize('precision', ['fp32','bf16'])
def test_memory_stays_on_a_cpu(make_learn, monkeypatch, precision):
    asked = []
    monkeypatch.setattr('sesemi_fastai.precision.keep_memory', lambda: asked.append(precision))
    learn = make_learn().to_precision(precision)
    learn.dls.train.fake_l.num_workers = 1
    learn.to_precision(precision)
    learn.dls.train.fake_l.num_workers,learn.dls.device = 0,torch.device('meta') # any other than a CPU
    learn.to_precision(precision)
    assert asked == [precision]

def _wide_model(): # two by two pixels with 256 channels, of images of 32
    return nn.Sequential(nn.Conv2d(3, 256, 16, 16), nn.BatchNorm2d(256), nn.ReLU(), nn.Conv2d(256, 256, 3, padding=1), nn.BatchNorm2d(256), nn.ReLU(),
                         nn.Flatten(), nn.Linear(1024, 3))

@pytest.fixture
def products(monkeypatch):
    "Sizes of the batches whose convolutions are products, where `conv2d_im2col` works as it does"
    import sesemi_fastai.im2col as m
    seen,plain = [],m.conv2d_im2col
    monkeypatch.setattr(m, 'conv2d_im2col', lambda x, *args: seen.append(len(x)) or plain(x, *args))
    return seen

@pytest.mark.cell('Precision', 'convolutions of small maps as products on a CPU: the same training up to rounding, in both batches and in validation')
@pytest.mark.parametrize('bn', ['separate','joint'])
def test_convolutions_of_small_maps_are_products(make_learn, products, bn):
    def learn(precision=None):
        torch.manual_seed(0)
        res = make_learn(model=_wide_model(), cbs=[SESEMI(bn=bn, bs=2, features='5'), ChannelsLast()], opt_func=SGD, lr=1e-2)
        return fit(res.to_precision(precision).add_cb(ChannelsLast()) if precision else res, 2)
    plain = learn()
    assert not products
    fast = learn('fp32')
    assert {*products} == ({4,8,16} if bn == 'joint' else {4,8}) # the last batch of validation has four
    for a,b in zip(plain.model.parameters(), fast.model.parameters()): assert torch.allclose(a, b, atol=1e-6)
    for evaluate in (fast.get_preds, fast.validate, lambda: fast.lr_find(show_plot=False, num_it=3), fast.tta):
        del products[:]
        evaluate()
        assert products and traces(fast) == CLEAN
    fast.export('e.pkl')
    assert b'sesemi_fastai' not in (fast.path/'e.pkl').read_bytes()
    del products[:]
    fast.remove_cb(Im2col)
    assert not products and len(fit(fast).to_precision('bf16').to_precision('fp32').cbs.filter(lambda o: isinstance(o, Im2col))) == 1 and not products

@pytest.mark.cell('Interruption', 'convolutions are PyTorch\'s again after Ctrl-C and errors in the forward pass')
@pytest.mark.parametrize('precision', ['fp32','bf16'])
@pytest.mark.parametrize('phase', ['train','valid'])
def test_products_end_with_the_phase(make_learn, products, phase, precision):
    learn = make_learn(model=_wide_model(), cbs=SESEMI(features='5')).to_precision(precision)
    if precision == 'fp32': learn.add_cb(ChannelsLast())
    def boom(m, args):
        if m.training == (phase == 'train'): raise KeyboardInterrupt
    h = learn.model[6].register_forward_pre_hook(boom)
    with pytest.raises(KeyboardInterrupt): fit(learn)
    h.remove()
    assert products and torch.nn.functional.conv2d is torch.conv2d
    del products[:]
    learn.model(torch.randn(2,3,32,32))
    assert not products
    fit(learn)
    assert products and traces(learn) == CLEAN

def test_products_with_activations_that_are_computed_again(make_learn, products):
    class Again(nn.Sequential):
        def forward(self, x): return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)
    def trained(again):
        torch.manual_seed(0)
        model = _wide_model()
        learn = make_learn(model=nn.Sequential(again(*model[:6]), *model[6:])).to_precision('fp32')
        return fit(learn.add_cb(ChannelsLast())).model.state_dict()
    plain,n = trained(nn.Sequential),len(products)
    again = trained(Again)
    assert n < len(products)-n and all(torch.allclose(again[k], v, atol=1e-5) for k,v in plain.items() if 'running' not in k and 'num' not in k)

def test_products_leave_a_contiguous_network_alone(make_learn, products):
    fit(make_learn(model=_wide_model()).to_precision('fp32'))
    assert not products

def test_a_gpu_computes_no_products(make_learn):
    learn = make_learn()
    learn.dls.device = torch.device('meta') # any other than a CPU
    assert not learn.to_precision('fp32').cbs.filter(lambda o: isinstance(o, Im2col))

def _autocast_is_left(learn, phase, device):
    def boom(m, args):
        if m.training == (phase == 'train'): raise KeyboardInterrupt
    h = learn.model[2].register_forward_pre_hook(boom)
    with pytest.raises(KeyboardInterrupt): fit(learn)
    assert not torch.is_autocast_enabled(device)
    h.remove()
    x = torch.randn(1,3,32,32, device=device)
    before = learn.model.eval()(x)
    assert before.dtype == torch.float32
    fit(learn); learn.validate(); learn.get_preds()
    assert traces(learn) == CLEAN and not torch.is_autocast_enabled(device)
    with torch.autocast(device, dtype=torch.bfloat16): assert (learn.model.eval()(x)-before).abs().max() > 1e-3 # no old copies of the weights

@pytest.mark.cell('Interruption', 'autocast on a CPU is left after Ctrl-C and errors in the forward pass')
@pytest.mark.parametrize('phase', ['train','valid'])
def test_autocast_is_left_when_the_forward_pass_fails(make_learn, phase): _autocast_is_left(make_learn(cbs=SESEMI()).to_precision('bf16'), phase, 'cpu')

@pytest.mark.cuda
@needs_cuda
@pytest.mark.cell('Interruption', 'autocast on a GPU is left after Ctrl-C and errors in the forward pass')
@pytest.mark.parametrize('precision', ['bf16','fp16'])
@pytest.mark.parametrize('phase', ['train','valid'])
def test_autocast_on_a_gpu_is_left_when_the_forward_pass_fails(make_learn, make_dls, phase, precision):
    dls = make_dls()
    dls.cuda()
    _autocast_is_left(make_learn(dls=dls, model=tiny_model().cuda(), cbs=SESEMI()).to_precision(precision), phase, 'cuda')

@pytest.mark.cell('Precision', 'a mid-fit evaluation leaves autocast, and the scaler of fp16, in working order')
def test_an_evaluation_in_the_middle_leaves_the_scaler(make_learn, monkeypatch):
    import sesemi_fastai.precision as precision
    class Scaler: # there is no fp16 scaler on a CPU; this one counts
        steps = 0
        def scale(self, loss): return loss
        def step(self, opt): self.steps += 1; opt.step()
        def get_scale(self): return 1.
        def update(self): pass
    class Evaluates(Callback):
        order = 50
        def after_epoch(self):
            if not self.learn.lock.locked(): self.learn.get_preds(ds_idx=1)
        def after_fit(self):
            if not self.learn.lock.locked(): self.seen = self.learn.scaler
    monkeypatch.setattr(precision, 'GradScaler', Scaler)
    learn = make_learn(cbs=[Evaluates(), precision.Autocast('fp16')])
    Evaluates.order = precision.Autocast.order-1
    fit(learn, 2)
    assert learn.evaluates.seen.steps == 12 and learn.scaler is None

@pytest.mark.cuda
@needs_cuda
@pytest.mark.cell('Precision', 'learn.to_precision on a GPU')
@pytest.mark.parametrize('precision', ['auto','fp32','bf16','fp16'])
def test_precision_on_a_gpu(make_learn, make_dls, precision):
    dls = make_dls()
    dls.cuda()
    learn = make_learn(dls=dls, model=tiny_model().cuda(), cbs=SESEMI()).to_precision(precision)
    assert np.isfinite(fit(learn, 2).recorder.values[-1]).all()

# -- accumulation, losses
class Grads(Callback):
    order = 90
    def before_fit(self): self.grads = []
    def before_step(self): self.grads.append([p.grad.clone() for p in [*self.model.parameters(), *self.sesemi.rot_head.parameters()]])

@pytest.mark.cell('Accumulation and mixing', 'GradientAccumulation: the gradient is that of the large batch, in the body and in both heads')
def test_accumulated_gradient_is_that_of_the_large_batch(image_folder, tmp_path):
    grads = []
    for bs,n_acc in [(16,16), (8,16)]:
        dls = DataBlock((ImageBlock,CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=RandomSplitter(.2, seed=0),
                        item_tfms=Resize(32)).dataloaders(image_folder, bs=bs, num_workers=0)
        dls.train.rng = random.Random(0)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3,8,3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,3)) # no BatchNorm: it would see other batches
        learn = Learner(dls, model, opt_func=SGD, path=tmp_path,
                        cbs=[SESEMI(list(get_image_files(image_folder).sorted()), seed=1), Grads(), GradientAccumulation(n_acc)])
        with learn.no_bar(): fit(learn)
        grads.append(learn.grads.grads)
    assert len(grads[0]) == len(grads[1]) == 3
    for a,b in zip(grads[0][0], grads[1][0]): torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)

@pytest.mark.cell('Accumulation and mixing', 'label smoothing, GradientClip')
@pytest.mark.parametrize('kwargs', [dict(loss_func=LabelSmoothingCrossEntropyFlat()), dict(cbs=[GradientClip(.01)])], ids=['label smoothing','GradientClip'])
def test_smoothing_and_clipping(make_learn, kwargs):
    cbs = [SESEMI(), *kwargs.pop('cbs', []), Grads()]
    learn = fit(make_learn(cbs=cbs, **kwargs))
    assert np.isfinite(learn.recorder.values[0]).all() and traces(learn) == CLEAN
    if hasattr(learn, 'gradient_clip'):
        n = len(list(learn.model.parameters()))
        assert all(torch.stack([o.norm() for o in g[:n]]).norm() <= .0101 for g in learn.grads.grads)

# -- schedules
def fits(learn):
    return dict(fit=lambda: learn.fit(2, .01), one_cycle=lambda: learn.fit_one_cycle(2, .01), flat_cos=lambda: learn.fit_flat_cos(2, .01),
                sgdr=lambda: learn.fit_sgdr(2, 1, .01), poly=lambda: learn.fit_poly(2, .01))

@pytest.mark.cell('Schedules and fits', 'fit, fit_one_cycle, fit_flat_cos, fit_sgdr, the polynomial schedule')
@pytest.mark.parametrize('name', ['fit','one_cycle','flat_cos','sgdr','poly'])
def test_every_fit(make_learn, name):
    rates = []
    for cbs in (None, SESEMI(rampup=1)):
        learn = make_learn(cbs=cbs)
        with Quiet(learn): fits(learn)[name]()
        assert traces(learn) == CLEAN
        rates.append(learn.recorder.lrs)
    assert rates[0] == rates[1] and len(learn.recorder.values) == (3 if name == 'sgdr' else 2)
    weights = [v[-1] for v in learn.recorder.values]
    assert 0 < weights[0] < 1 and weights[-1] == 1

@pytest.mark.cell('Schedules and fits', 'lr_find leaves model, optimizer, rotation head and unlabeled stream as they were')
def test_lr_find_between_fits(make_learn):
    learn = make_learn(cbs=SESEMI(), opt_func=SGD)
    fit(learn)
    learn.sesemi._stream.batch() # in the middle of a pass
    def now():
        o = learn.sesemi.state_dict()
        return dict(model=states(learn.model), head=states(learn.sesemi.rot_head), drawn=o['stream']['drawn'], random=o['stream']['now']['random_state'],
                    images=o['n_images'], labelled=learn.dls.train.rng.getstate(), opt=copy.deepcopy(learn.opt.state_dict()))
    before = now()
    with learn.no_bar(): learn.lr_find(show_plot=False, num_it=5)
    after = now()
    assert same(before['model'], after['model']) and same(before['head'], after['head'])
    assert all(before[k] == after[k] for k in ('drawn','random','images'))
    plain = fit(make_learn(opt_func=SGD))
    with plain.no_bar(): plain.lr_find(show_plot=False, num_it=5)
    assert str(plain.opt.state_dict()['hypers']) == str(after['opt']['hypers']) and len(plain.opt.state_dict()['state']) == len(after['opt']['state'])

# -- evaluation
@pytest.mark.cell('Evaluation', 'tta before a fit, after it, and from another callback in the middle of one: nothing is learned, lost or switched off by it')
def test_tta_is_no_fit(make_learn, tmp_path):
    class Asks(Callback):
        order = 70
        def before_epoch(self):
            if self.epoch == 1 and self.asks.n == 0:
                self.asks.n = 1
                self.learn.tta(n=1)
                self.learn.epoch,self.learn.asked = 1,True
    asks = Asks(); asks.n = 0
    learn = make_learn(cbs=[SESEMI(rot_only=1), Memorisation(), LabelReport(), Checkpoint(tmp_path/'c', resume=True), asks])
    with learn.no_bar(): learn.tta(n=1)
    fit(learn, 3)
    assert learn.asked and learn.sesemi.n_images == 3*8*len(learn.dls.train) and len(learn.memorisation.history) == learn.label_report.epochs == 2
    assert not learn._with_events.__self__.__dict__.get('_with_events') and len(checkpoint_files(tmp_path/'c')) == 2
    with learn.no_bar(): learn.tta(n=1)
    assert len(learn.memorisation.history) == 2 and learn.memorisation.plot()

@pytest.mark.cell('Evaluation', 'tta, show_results, ClassificationInterpretation: bit-identical with and without the callback')
def test_tta_and_interpretation(make_learn):
    plain,sesemi = make_learn(),make_learn(cbs=[SESEMI(), RobustLoss(ELR()), Memorisation()])
    fit(sesemi)
    plain.model.load_state_dict(sesemi.model.state_dict())
    res = []
    for learn in (plain,sesemi):
        random.seed(5); torch.manual_seed(5); np.random.seed(5)
        with learn.no_bar():
            tta = learn.tta(n=2)
            inter = ClassificationInterpretation.from_learner(learn)
            inter.plot_top_losses(2)
            learn.show_results(max_n=2)
        res.append((tta, inter.confusion_matrix(), inter.top_losses()))
    plt.close('all')
    assert len(sesemi.memorisation.history) == 1 and sesemi.sesemi.n_images > 0
    for (a,b) in zip(res[0][0], res[1][0]): assert torch.equal(a, b)
    assert (res[0][1] == res[1][1]).all() and torch.equal(res[0][2][0], res[1][2][0])
    assert traces(sesemi) == CLEAN

# -- keeping
@pytest.mark.cell('Keeping', 'EarlyStoppingCallback')
def test_early_stopping(make_learn):
    learn = fit(make_learn(cbs=SESEMI()), 5, cbs=EarlyStoppingCallback('rot_loss', comp=np.greater, min_delta=100, patience=2))
    assert len(learn.recorder.values) == 3 and traces(learn) == CLEAN
    learn.validate()

@pytest.mark.cell('Keeping', 'state_dict that loads into the bare architecture; weights as .pth and .safetensors')
@pytest.mark.parametrize('suffix', ['pth','safetensors'])
def test_weights_for_other_programs(make_learn, tmp_path, suffix):
    learn = fit(make_learn(cbs=SESEMI()).to_precision('bf16'))
    f = export_weights(learn, tmp_path/f'model.{suffix}')
    code = f"""
import sys; sys.modules['fastai'] = sys.modules['sesemi_fastai'] = None
import torch
state = torch.load({str(f)!r}, weights_only=True) if {suffix!r} == 'pth' else __import__('safetensors.torch').torch.load_file({str(f)!r})
print(sorted(state), sum(state[k].double().sum() for k in sorted(state)).item())
"""
    res = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert res.returncode == 0, res.stderr
    state = learn.model.state_dict()
    assert res.stdout.strip() == f'{sorted(state)} {sum(state[k].double().sum() for k in sorted(state)).item()}'
    assert not any('rot' in k for k in state)
    tiny_model().load_state_dict(state)

# -- loggers
@pytest.mark.cell('Loggers', 'TensorBoardCallback: supervised loss, rotation loss, rotation accuracy, weight')
def test_tensorboard(make_learn, tmp_path):
    from fastai.callback.tensorboard import TensorBoardCallback
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    learn = fit(make_learn(cbs=SESEMI(rampup=2)), 3, cbs=TensorBoardCallback(tmp_path/'tb', trace_model=False, log_preds=False))
    events = EventAccumulator(str(tmp_path/'tb')).Reload()
    for name,i in dict(rot_loss=-3, rot_acc=-2, rot_weight=-1).items():
        assert [o.value for o in events.Scalars(name)] == pytest.approx([v[i] for v in learn.recorder.values], rel=1e-5)
    assert events.Scalars('train_loss')[-1].value == pytest.approx(float(learn.recorder.losses[-1]), rel=1e-5)

@pytest.mark.cell('Loggers', "W&B's callback, client in offline mode")
def test_wandb_offline(make_learn, tmp_path, monkeypatch):
    import wandb
    from sesemi_fastai.loggers import wandb_callback
    for k,v in dict(WANDB_MODE='offline', WANDB_SILENT='true', WANDB_DIR=str(tmp_path)).items(): monkeypatch.setenv(k, v)
    wb = wandb.init(project='x', dir=str(tmp_path))
    learn = fit(make_learn(cbs=SESEMI()), 2, cbs=wandb_callback(log_preds=False, log_model=False))
    summary = {k:wb.summary[k] for k in ('train_loss','rot_loss','rot_acc','rot_weight')}
    wb.finish()
    assert summary['rot_loss'] == pytest.approx(learn.recorder.values[-1][-3], rel=1e-5) and summary['rot_weight'] == 1
    assert list(tmp_path.glob('wandb/offline-run-*')) and traces(learn) == CLEAN

@pytest.mark.cell('Interruption', 'an error before training begins leaves nothing that an export or a copy would take along')
def test_export_after_an_error_before_training(make_learn, tmp_path):
    class Late(Callback):
        order = 80
        def before_epoch(self): raise RuntimeError('early')
    learn = make_learn(cbs=[SESEMI(), Late()]).to_precision('bf16')
    with pytest.raises(RuntimeError): fit(learn)
    learn.remove_cb(Late)
    learn.export('e.pkl')
    assert b'sesemi_fastai' not in (tmp_path/'e.pkl').read_bytes()
    assert traces(fit(copy.deepcopy(learn))) == CLEAN and traces(fit(learn)) == CLEAN

@pytest.mark.cell('Evaluation', 'validate from another callback before the epoch begins')
def test_validation_before_an_epoch(make_learn):
    class Peek(Callback):
        order = 90
        def before_epoch(self):
            if not self.lock.locked(): self.learn.validate()
    learn = fit(make_learn(cbs=[SESEMI(), Peek()]), 2)
    assert learn.sesemi.n_images == 2*len(learn.dls.train)*8 and traces(learn) == CLEAN

dead_worker = """
import os, torch
from fastai.vision.all import *
from sesemi_fastai.all import SESEMI
from conftest import tiny_model
from test_callback import traces
class Mortal(torch.utils.data.Dataset):
    def __init__(self, kill): self.kill = kill
    def __len__(self): return 40
    def __getitem__(self, i):
        if i == self.kill: os._exit(1)
        return torch.zeros(3,32,32),torch.tensor(i%3)
dls = DataLoaders(*(DataLoader(Mortal(kill), bs=8, shuffle=False, num_workers=1, drop_last=True) for kill in (LABELLED,None)))
stream = torch.utils.data.DataLoader(Mortal(UNLABELED), batch_size=2, num_workers=1)
learn = Learner(dls, tiny_model(), loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=SESEMI(stream))
with learn.no_bar(), learn.no_logging():
    try: learn.fit(9)
    except (RuntimeError,ConnectionError,EOFError): pass # PyTorch tells it in one of these ways
    else: raise AssertionError('the worker should have died')
    assert traces(learn)[:3] == (0,0,False), traces(learn)
    learn.dls = DataLoaders(*(DataLoader(Mortal(None), bs=8) for _ in range(2)))
    learn.sesemi.unlabeled = torch.utils.data.DataLoader(Mortal(None), batch_size=2)
    learn.fit(1)
assert len(learn.recorder.values[0]) == 6 and traces(learn)[:3] == (0,0,False)
print('usable')
"""

@pytest.mark.cell('Interruption', 'a worker that dies, of the labelled loader or of the unlabeled one')
@pytest.mark.parametrize('labelled,unlabeled', [(20,None), (None,20)])
def test_a_dead_worker(labelled, unlabeled):
    "In a process of its own: PyTorch reports the death at any later moment as well"
    code = dead_worker.replace('UNLABELED', str(unlabeled)).replace('LABELLED', str(labelled))
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, timeout=120, cwd=os.path.dirname(__file__))
    assert res.returncode == 0 and 'usable' in res.stdout, res.stderr[-2000:]
