"What the callback must not touch: plain training, its random numbers, its batches"
import torch, pytest
from fastai.vision.all import Callback, SGD, ranger
from sesemi_fastai.optim import ranger_fused
from sesemi_fastai.callback import SESEMI

class Keep(Callback):
    "Keeps every labelled batch as the model gets it, and the supervised losses"
    order = 100
    def before_fit(self): self.xs,self.sup = [],[]
    def before_batch(self):
        if self.training: self.xs.append(self.xb[0].clone())
    def after_loss(self):
        if self.training: self.sup.append(self.learn.loss.item())

def trained(make_learn, sesemi=None, epochs=4, **kwargs):
    "A Learner after 24 steps"
    learn = make_learn(model=None, **kwargs)
    keep = Keep()
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, .05, cbs=[keep]+([sesemi] if sesemi else []))
    return learn,keep

def same(a, b): return all(torch.equal(p,q) for p,q in zip(a.model.state_dict().values(), b.model.state_dict().values()))

@pytest.mark.cell('Learner', 'weight 0 is plain training, step for step')
@pytest.mark.parametrize('bn', ['separate','joint'])
@pytest.mark.parametrize('opt_func', [SGD, ranger, ranger_fused])
def test_weight_zero_is_plain_training(make_learn, bn, opt_func):
    (a,ka),(b,kb) = trained(make_learn, opt_func=opt_func),trained(make_learn, SESEMI(weight=0, bn=bn), opt_func=opt_func)
    assert len(ka.sup) >= 20 and ka.sup == kb.sup
    assert same(a, b)
    assert a.recorder.metric_names == b.recorder.metric_names

def test_vanishing_weight_is_plain_training(make_learn):
    "All of the machinery runs, and its loss vanishes in float32: the same parameters, step for step"
    (a,ka),(b,kb) = trained(make_learn),trained(make_learn, SESEMI(weight=1e-30))
    assert ka.sup == kb.sup
    for p,q in zip(a.model.parameters(), b.model.parameters()): assert torch.equal(p, q)
    assert b.recorder.metric_names[-4:-1] == ['rot_loss','rot_acc','rot_weight']
    assert not same(a, b) # running BatchNorm statistics see the rotated images as well

@pytest.mark.cell('Learner', 'the labelled batches are those of plain training')
@pytest.mark.parametrize('bn', ['separate','joint'])
def test_labelled_batches_do_not_depend_on_sesemi(make_learn, bn):
    (_,ka),(_,kb) = trained(make_learn),trained(make_learn, SESEMI(bn=bn, seed=5))
    assert all(torch.equal(x,y) for x,y in zip(ka.xs, kb.xs)) and len(ka.xs) == len(kb.xs) >= 20
    assert ka.sup[0] == pytest.approx(kb.sup[0], abs=1e-6) or bn == 'joint'
    assert ka.sup[-1] != kb.sup[-1]

def test_same_seed_same_run_and_another_seed_another(make_learn):
    (a,ka),(b,kb),(c,kc) = (trained(make_learn, SESEMI(seed=s)) for s in (0,0,1))
    assert same(a, b) and ka.sup == kb.sup
    assert not same(a, c) and torch.equal(ka.xs[-1], kc.xs[-1])
