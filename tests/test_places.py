"""A GPU that is none: tensors on PyTorch's `meta` device have a place and no values, so that code which mixes places fails as on a GPU.
Where values are asked for, `Pretend` gives ones; what training is worth cannot be seen here"""
from contextlib import nullcontext
import pytest, torch
from fastai.vision.all import EarlyStoppingCallback, GradientAccumulation, GradientClip, Learner, MixUp, SchedCos, accuracy, defaults, ranger
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from sesemi_fastai.all import SESEMI, Checkpoint, LabelReport, Memorisation, RobustLoss, own_dls, robust_cbs
from sesemi_fastai.checkpoint import FiniteLoss
from sesemi_fastai.methods import methods
from sesemi_fastai.losses import TrainingLoss
from conftest import tiny_model
from test_callback import fit
from test_resume import Crash

pytestmark = pytest.mark.filterwarnings('ignore:.*meta parameter') # loading values into nothing
aten = torch.ops.aten
may_mix = aten.copy_,aten._to_copy # a GPU takes indices of a CPU as well, but has to wait for them
def _meta(o): return isinstance(o, torch.Tensor) and o.device.type == 'meta'

class Pretend(TorchDispatchMode):
    "Ones, where somebody asks for values"
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not any(map(_meta, tree_leaves((args,kwargs)))): return func(*args, **kwargs)
        if func.overloadpacket in (aten._local_scalar_dense, aten.equal) or kwargs.get('device') == torch.device('cpu'):
            return func(*self._ones(args), **self._ones(kwargs))
        if func.overloadpacket is aten.copy_ and not _meta(args[0]): return args[0].fill_(1)
        if func.overloadpacket not in may_mix: self._one_place(func, args, kwargs)
        if not self._shaped_by_values(func, args): return func(*args, **kwargs)
        return tree_map_only(torch.Tensor, lambda o: o.to('meta'), func(*self._ones(args), **self._ones(kwargs)))
    def _shaped_by_values(self, func, args):
        "Whether the shape of the result depends on values, which are ones then; that of an index does if it is a mask"
        return torch.Tag.dynamic_output_shape in func.tags and (func.overloadpacket is not aten.index
            or any(o is not None and o.dtype == torch.bool for o in args[1]))
    def _one_place(self, func, args, kwargs):
        if any(o.ndim for o in tree_leaves((args,kwargs)) if torch.is_tensor(o) and not _meta(o)):
            raise RuntimeError(f'{func} gets tensors of more than one device')
    def _ones(self, args): return tree_map_only(torch.Tensor, lambda o: torch.ones(o.shape, dtype=o.dtype) if _meta(o) else o, args)

@pytest.fixture
def go(image_folder, tmp_path, monkeypatch):
    "Fits a Learner on `meta`"
    monkeypatch.setattr(defaults, 'use_cuda', None)
    monkeypatch.setattr(torch.Tensor, 'tolist', lambda x, tolist=torch.Tensor.tolist: tolist(x.cpu()))
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: nullcontext()) # knows no `meta`
    def go(n_epoch, *cbs):
        dls = own_dls(image_folder, size=32, bs=8, num_workers=0, store=tmp_path/'store', device=torch.device('meta'))
        learn = Learner(dls, tiny_model().to('meta'), path=tmp_path, opt_func=ranger, metrics=accuracy,
                        cbs=[*cbs, Memorisation(true=[o.split('/')[-2] for o in dls.train_ds.items.path])])
        return fit(learn, n_epoch) if n_epoch else learn
    with Pretend(): yield go

@pytest.mark.parametrize('name', methods)
def test_methods_keep_to_the_place_of_the_network(go, tmp_path, name):
    def cbs():
        res = robust_cbs(name)
        if name == 'auto': res[0].loss_func_of_training.takeover,res[0].loss_func_of_training.doubt = (0,2),(0,1)
        return *res,SESEMI(),LabelReport(),FiniteLoss()
    with pytest.raises(KeyboardInterrupt): go(3, *cbs(), Checkpoint(tmp_path/'c'), Crash())
    learn = go(3, *cbs(), Checkpoint(tmp_path/'c', resume=True))
    assert len(learn.recorder.values) == 3 and _meta(next(learn.model.parameters())) and len(learn.label_report.frame())
    learn.get_preds(), learn.tta()

@pytest.mark.parametrize('form', [dict(bn='joint'), dict(turns='one'), dict(unlabeled='batch'), dict(size=16), dict(every=2), dict(rot_only=1),
    dict(unlabeled='valid', weight=SchedCos(1, 0)), dict(rampup=2)], ids=','.join)
def test_forms_of_sesemi_keep_to_the_place_of_the_network(go, form): go(2, SESEMI(**form), GradientAccumulation(16))

@pytest.mark.parametrize('name', ['auto','elr','gce','ema'])
def test_methods_with_mixed_images(go, name): go(2, SESEMI(), MixUp(), *robust_cbs(name), EarlyStoppingCallback(), GradientClip())

def test_lr_find_and_fine_tune(go):
    learn = go(0, *robust_cbs('auto'), SESEMI(), LabelReport())
    learn.lr_find(show_plot=False, num_it=8)
    learn.fine_tune(1)

@pytest.mark.parametrize('mix',
    [lambda g,c: g @ c, lambda g,c: c[g.long()], lambda g,c: g.index_put_((g[0].long(),), c), lambda g,c: torch.nn.functional.linear(g, c)])
def test_mixtures_are_seen(mix):
    with Pretend(), pytest.raises(RuntimeError): mix(torch.zeros(3, 3, device='meta'), torch.zeros(3, 3))

class OnTwoPlaces(TrainingLoss):
    "A loss with a weight for each class that stays on the CPU"
    def per_image(self, pred, targ): return torch.nn.functional.cross_entropy(pred*torch.ones(3), targ.as_subclass(torch.Tensor), reduction='none')

def test_a_mixture_of_places_is_seen(go):
    with pytest.raises(RuntimeError, match='device'): go(1, RobustLoss(OnTwoPlaces()))
