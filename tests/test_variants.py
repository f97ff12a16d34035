"Forms of the rotation loss that cost less, or count at other times"
import numpy as np, pytest, torch
import torch.nn.functional as F
from functools import partial
from fastai.vision.all import Callback, MixUp, CutMix, GradientAccumulation, SchedCos, SchedLin
import sesemi_fastai.precision # for to_precision
from sesemi_fastai.callback import SESEMI
from sesemi_fastai.core import InputError
from sesemi_fastai.model import TwoBranch
from test_callback import CLEAN, Quiet, fit, traces

class Forward(Callback):
    "Shapes of what goes through the first layer, and what the callback holds, step by step"
    order = 3
    def before_fit(self):
        self.shapes,self.turns,self.xs,self.steps = [],[],[],0
        self.handle = next(self.model.children()).register_forward_pre_hook(lambda m,a: self.shapes.append((self.training, tuple(a[0].shape))))
    def after_fit(self): self.handle.remove()
    def after_batch(self): self.steps += self.training
    @property
    def trained(self): return [s for t,s in self.shapes if t]

def seen(make_learn, *args, n=1, **kwargs):
    look = Forward()
    learn = make_learn(cbs=[SESEMI(*args, **kwargs), look])
    fit(learn, n)
    assert traces(learn) == CLEAN
    return learn,look

@pytest.mark.cell('Learner', 'a cheaper rotation loss: one turn an image')
def test_one_turn_an_image(make_learn):
    learn,look = seen(make_learn, turns='one', bs=8)
    assert set(look.trained) == {(8,3,32,32)} and len(look.trained) == 2*look.steps
    assert learn.sesemi.n_images == 8*look.steps

def test_one_turn_is_each_of_the_four(make_learn):
    class Turns(Callback):
        order = SESEMI.order+1
        def before_fit(self): self.all = []
        def before_batch(self):
            if self.training: self.all.append(self.learn.sesemi._turns)
    turns = Turns()
    fit(make_learn(cbs=[SESEMI(turns='one', bs=32), turns]), 6)
    counts = torch.cat(turns.all).bincount(minlength=4)
    assert counts.min() > .8*counts.float().mean()

@pytest.mark.cell('Learner', 'a cheaper rotation loss: smaller rotated images')
def test_smaller_rotated_images(make_learn):
    learn,look = seen(make_learn, size=24)
    assert set(look.trained) == {(8,3,32,32),(2*4,3,24,24)}
    with pytest.raises(InputError, match='can be shrunk only'): fit(make_learn(cbs=SESEMI(size=40)), 1)

@pytest.mark.cell('Learner', 'a cheaper rotation loss: every k-th step')
def test_every_third_step(make_learn):
    learn,look = seen(make_learn, every=3, n=2)
    assert len(look.trained) == look.steps + -(-look.steps//3)

def test_steps_in_between_are_plain(make_learn):
    "With the first step's rotation loss left out as well, the run is plain training"
    def weights(cb): return [p.clone() for p in fit(make_learn(cbs=cb), 1).model.parameters()]
    plain,rare = weights([]),weights([SESEMI(every=10**6, weight=1e-30)])
    assert all(torch.equal(a, b) for a,b in zip(plain, rare))

@pytest.mark.cell('Learner', 'a cheaper rotation loss: the labelled batch itself, also under MixUp and CutMix')
@pytest.mark.parametrize('mix', [None,MixUp,CutMix])
def test_own_batch_is_turned_and_passes_once(make_learn, mix):
    look = Forward()
    learn = make_learn(cbs=[SESEMI('batch'), look, *([mix()] if mix else [])])
    fit(learn, 1)
    assert set(look.trained) == {(8,3,32,32)} and len(look.trained) == look.steps
    assert learn.sesemi.n_images == 0 and 0 <= learn.recorder.values[0][-2] <= 1 and traces(learn) == CLEAN

def test_own_batch_has_the_gradient_of_both_losses(make_learn):
    "Worked out by hand from the turned images and the weights of that step"
    class ByHand(Callback):
        order = GradientAccumulation.order+1
        def before_batch(self):
            if not self.training: return
            cb = self.learn.sesemi
            self.turned = self.xb[0].clone(),cb._turns
        def after_backward(self):
            if self.iter: return
            x,turns = self.turned
            got = [p.grad.clone() for p in self.model.parameters()]
            bn = {k:v.clone() for k,v in self.model.state_dict().items()}
            tb = TwoBranch(self.model, x[:2])
            tb.head.load_state_dict(self.learn.sesemi.rot_head.state_dict())
            loss = F.cross_entropy(self.model(x), self.y) + .5*F.cross_entropy(tb.head(tb.body(x)), turns)
            self.want = torch.autograd.grad(loss, list(self.model.parameters()))
            self.model.load_state_dict(bn)
            self.got = got
    by_hand = ByHand()
    fit(make_learn(cbs=[SESEMI('batch', weight=.5, turned=.75), by_hand]), 1)
    assert any(k > 0 for k in by_hand.turned[1])
    for a,b in zip(by_hand.got, by_hand.want): torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)

def test_rotations_alone_first(make_learn):
    "In the first epoch the label head has no gradient, and the body has; then both have"
    class Grads(Callback):
        def before_fit(self): self.seen = []
        def after_backward(self): self.seen.append((self.epoch,self.model[-1].weight.grad is not None,self.model[0][0].weight.grad is not None))
    grads = Grads()
    fit(make_learn(cbs=[SESEMI(rot_only=1), grads]), 2)
    assert set(grads.seen) == {(0,False,True),(1,True,True)}

@pytest.mark.parametrize('weight,want', [(SchedCos(1, 0), lambda s: (1+np.cos(np.pi*s))/2), (SchedLin(0, 2), lambda s: 2*s)], ids=['cos','lin'])
def test_weight_by_a_schedule(make_learn, weight, want):
    learn = make_learn(cbs=SESEMI(weight=weight))
    fit(learn, 4)
    n = len(learn.dls.train)
    means = [np.mean([want((e*n+i)/(4*n)) for i in range(n)]) for e in range(4)]
    np.testing.assert_allclose([o[-1] for o in learn.recorder.values], means, atol=1e-4)

@pytest.mark.cell('Accumulation and mixing', 'the cheaper rotation losses with gradient accumulation and in 16 bits')
@pytest.mark.parametrize('kwargs', [dict(turns='one'), dict(size=24), dict(every=2), dict(unlabeled='batch'), dict(rot_only=.5)],
                         ids=['one turn','smaller','every second','own batch','rotations first'])
@pytest.mark.parametrize('precision', ['fp32','bf16'])
def test_with_accumulation(make_learn, kwargs, precision):
    learn = make_learn(cbs=[SESEMI(**kwargs), GradientAccumulation(16)]).to_precision(precision)
    fit(learn, 2)
    assert np.isfinite(learn.recorder.values[-1]).all() and traces(learn) == CLEAN

@pytest.mark.parametrize('kwargs,says',
    [(dict(turns='two'), "'all' or 'one'"), (dict(every=0), 'at least 1'), (dict(turned=1.), 'between 0 and 1'), (dict(rot_only=-1), 'not be negative'),
    (dict(size=24, bn='joint'), 'a forward pass for the rotated images alone'),
    (dict(size=24, unlabeled='batch'), 'a forward pass for the rotated images alone')])
def test_mistakes(kwargs, says):
    with pytest.raises(InputError, match=says): SESEMI(**kwargs)
