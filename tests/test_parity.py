"SESEMI as a callback against a loop written from the papers in plain PyTorch: same losses, same weights"
import copy
from functools import partial
import pytest, torch
import torch.nn.functional as F
from torch import nn
from fastai.vision.all import Callback, CrossEntropyLossFlat, DataLoader, DataLoaders, Learner
from sesemi_fastai.callback import SESEMI
from sesemi_fastai.optim import optimizers
from conftest import tiny_model

N,B = 20,4

@pytest.fixture(scope='module')
def batches():
    g = torch.Generator().manual_seed(0)
    labelled = [(torch.randn(4*B,3,32,32, generator=g), torch.randint(0,3,(4*B,), generator=g)) for _ in range(N)]
    return labelled,[torch.randn(B,3,32,32, generator=g) for _ in range(N)]

def turn(img, k):
    "`k` quarter turns counter-clockwise with index arithmetic alone"
    for _ in range(k): img = img.transpose(-1,-2).flip(-2)
    return img

def plain_loop(model, head, opt, labelled, unlabeled, bn):
    body,tail = nn.Sequential(*list(model)[:-4]),nn.Sequential(*list(model)[-4:])
    losses = []
    model.train()
    for (x,y),u in zip(labelled, unlabeled):
        rot = torch.stack([turn(img, k) for img in u for k in range(4)])
        turns = torch.tensor([k for _ in u for k in range(4)])
        if bn == 'separate': fl,fr = body(x),body(rot)
        else: fl,fr = body(torch.cat([x,rot])).split([len(x),len(rot)])
        sup,aux = F.cross_entropy(tail(fl), y),F.cross_entropy(head(fr.mean((2,3))), turns)
        opt.zero_grad()
        (sup+aux).backward()
        opt.step()
        losses.append((sup.item(), aux.item()))
    return torch.tensor(losses)

class Watch(Callback):
    "Keeps the head as it begins, and both losses of each step"
    order = SESEMI.order+1
    def before_train(self): self.head0,self.losses = copy.deepcopy(self.sesemi.rot_head.linear),[]
    def after_batch(self):
        if self.training: self.losses.append(self.learn.loss.item())
    def after_epoch(self): self.head1 = copy.deepcopy(self.sesemi.rot_head.linear)

# As published, and written apart from the recipes that are tested
published = dict(sgd=partial(torch.optim.SGD, momentum=.9, nesterov=True, weight_decay=5e-4), adam=partial(torch.optim.Adam, betas=(.9,.999), weight_decay=0))

@pytest.mark.cell('Learner', 'losses and weights of an independent loop in plain PyTorch')
@pytest.mark.parametrize('bn', ['separate','joint'])
@pytest.mark.parametrize('name,lr', [('sgd',.01), ('adam',1e-3)])
def test_same_as_plain_loop(batches, bn, name, lr, tmp_path):
    (labelled,unlabeled),opt,recipe = batches,published[name],optimizers[name]
    torch.manual_seed(0)
    model = tiny_model()
    ours,theirs = copy.deepcopy(model),copy.deepcopy(model)
    dls = DataLoaders(DataLoader(labelled, bs=None), DataLoader(labelled[:1], bs=None), path=tmp_path)
    watch,sesemi = Watch(),SESEMI(DataLoader(unlabeled, bs=None), bn=bn)
    learn = Learner(dls, ours, CrossEntropyLossFlat(), opt_func=recipe.opt_func, wd=recipe.wd, wd_bn_bias=recipe.wd_bn_bias, cbs=[sesemi,watch])
    with learn.no_bar(), learn.no_logging(): learn.fit(1, lr)

    head = copy.deepcopy(watch.head0)
    params = [*theirs.parameters(), *head.parameters()]
    losses = plain_loop(theirs, head, opt(params, lr=lr), labelled, unlabeled, bn)

    torch.testing.assert_close(torch.tensor(watch.losses), losses[:,0], atol=1e-5, rtol=0)
    assert learn.recorder.values[0][-3] == pytest.approx(losses[:,1].mean().item(), abs=1e-5)
    for (n,p),q in zip(ours.state_dict().items(), theirs.state_dict().values()):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=0, msg=lambda m: f'{n}: {m}')
    torch.testing.assert_close(watch.head1.weight, head.weight, atol=1e-5, rtol=0)
    assert not any(torch.allclose(p, q, atol=1e-3) for p,q in zip([ours[0][0].weight, watch.head1.weight], [model[0][0].weight, watch.head0.weight]))
