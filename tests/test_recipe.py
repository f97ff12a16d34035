"Each published protocol, held to what its authors' code does"
import math, os, random
from pathlib import Path
import numpy as np, pytest, torch, torchvision.transforms as T
from PIL import Image
from scipy.stats import ks_2samp
from fastai.vision.all import Callback, CancelBatchException, Learner, Lookahead, PILImage, Pipeline, RandomResizedCrop, ranger
from sesemi_fastai import experiment, setup
from sesemi_fastai.arch import make_model
from sesemi_fastai.augment import item_tfms
from sesemi_fastai.mini import make_mini
from sesemi_fastai.core import InputError
from sesemi_fastai.optim import optimizers, ranger_fused, ranger_gc, schedules
from sesemi_fastai.recipe import recipes, resolved
from test_data import needs_real, real

@pytest.fixture(scope='module')
def mini(tmp_path_factory): return make_mini(tmp_path_factory.mktemp('recipe')/'mini', 300, 60)

@pytest.fixture(scope='module')
def tiny(tmp_path_factory): return make_mini(tmp_path_factory.mktemp('recipe')/'tiny', 60, 12)

class Look(Callback):
    "What each step would do, without doing it"
    order = 200
    def before_fit(self): self.lrs,self.shapes,self.inside = [],[],None
    def before_batch(self):
        if not self.training: return
        self.lrs.append(self.opt.hypers[0]['lr'])
        self.shapes.append((tuple(self.xb[0].shape), tuple(self.learn.sesemi._x.shape) if hasattr(self.learn, 'sesemi') else None))
        self.inside = getattr(self.opt, 'opt', self.opt),[len(o) for o in self.opt.param_lists]
        raise CancelBatchException()

def looked_at(mini, recipe, max_epochs=None, **kwargs):
    "A fit of the recipe on the drawn set, with a small network of the same kind, whose steps are skipped"
    config = resolved(dict(recipe=recipe, dataset='own', path=str(mini), size=32, workers=0, arch='resnet18', precision='fp32', **kwargs))
    learn,_,n_epoch,cbs = setup.set_up(str(mini), config, config['unlabeled'], None)
    learn.remove_cbs([o for o in learn.cbs if o.name in ('progress','recorder','memorisation','predictions')])
    look = Look()
    with learn.no_logging(): schedules[config['sched']](learn, n_epoch, config['lr'], cbs=[look,*cbs], **setup.warmup_of(config, n_epoch))
    return learn,look

# -- facts of the published code, written down here once more
facts = {
    'sesemi-5ep':        dict(dataset='nette', arch='resnext50_32x4d', opt='adam', lr=.001, warmup=0, bs=4*24, unlabeled_bs=24, epochs=5),
    'sesemi-80ep':       dict(dataset='nette', arch='resnet50', opt='sgd', lr=.1, warmup=10, warmup_lr=.001, bs=4*32, unlabeled_bs=32, epochs=80),
    'sesemi-200ep':      dict(dataset='nette', arch='resnet50', opt='sgd', lr=.1, warmup=10, warmup_lr=.001, bs=4*32, unlabeled_bs=32, epochs=200),
    'sesemi-wang-80ep':  dict(dataset='wang', arch='resnet50', opt='sgd', lr=.1, warmup=10, warmup_lr=.001, bs=4*32, unlabeled_bs=32, epochs=80),
    'sesemi-wang-200ep': dict(dataset='wang', arch='resnet50', opt='sgd', lr=.1, warmup=10, warmup_lr=.001, bs=4*32, unlabeled_bs=32, epochs=200)}
all_of_them = dict(size=224, aug='sesemi', dropout=.5, sched='poly', epoch_unit='unlabeled', unlabeled='all', weight=1., rampup=0., turns='all',
                   bn='separate', smoothing=0., robust='none')

@pytest.mark.cell('Schedules and fits', 'published protocols by name')
@pytest.mark.parametrize('name', facts)
def test_options_are_the_published_ones(name):
    config = resolved(dict(recipe=name))
    assert {k:config[k] for k in (facts[name] | all_of_them)} == facts[name] | all_of_them

def test_the_baseline_of_the_leaderboard():
    config = resolved(dict(recipe='baseline-ranger'))
    want = dict(arch='xse_resnext50_sa', opt='ranger', lr=8e-3, sched='flat_cos', smoothing=.1, bs=64, size=128, unlabeled='none', epoch_unit='labelled')
    assert {k:config[k] for k in want} == want
    kinds = {type(m).__name__ for m in make_model(config['arch'], 10).modules()}
    assert {'Mish','SimpleSelfAttention'} <= kinds and 'ReLU' not in kinds
    learn = optimizers['ranger'].opt_func([torch.zeros(1, requires_grad=True)], lr=1)
    assert isinstance(learn, Lookahead)
    assert {k:learn.opt.hypers[0][k] for k in ('mom','sqr_mom','eps')} == dict(mom=.95, sqr_mom=.99, eps=1e-6) and optimizers['ranger'].wd == .01

def published_rate(step, max_steps, lr, warmup_steps=0, warmup_lr=0.):
    if step < warmup_steps: return warmup_lr + (lr-warmup_lr)*step/warmup_steps
    return lr*(1-(step-warmup_steps)/(max_steps-warmup_steps))**.5

@pytest.mark.parametrize('name', [o for o in facts if 'wang' not in o])
def test_rate_at_each_step_and_shape_of_each_batch(mini, tiny, name):
    "The rates with small batches, because the pictures have to be read; batches in one epoch"
    f = facts[name]
    _,look = looked_at(tiny, name, bs=4, unlabeled_bs=24)
    per_epoch = 72//24 # 60 training and 12 validation images
    n = per_epoch*f['epochs']
    assert len(look.lrs) == n
    want = [published_rate(i, n, f['lr'], per_epoch*f['warmup'], f.get('warmup_lr', 0)) for i in range(n)]
    np.testing.assert_allclose(look.lrs, want, rtol=1e-6)
    _,look = looked_at(mini, name, epochs=1, warmup=0.)
    assert set(look.shapes) == {((f['bs'],3,32,32),(f['bs'],3,32,32))} and len(look.shapes) == 360//f['unlabeled_bs']

@pytest.mark.parametrize('name,kind,settings', [('sesemi-5ep', torch.optim.Adam, dict(betas=(.9,.999), weight_decay=0)),
    ('sesemi-80ep', torch.optim.SGD, dict(momentum=.9, nesterov=True, weight_decay=5e-4))])
def test_decay_of_each_weight(mini, name, kind, settings):
    "In torch's own optimizer, with one group that holds every weight: BatchNorm, biases and the rotation head as well"
    learn,look = looked_at(mini, name, epochs=1, warmup=0.)
    opt,sizes = look.inside
    assert type(opt) is kind and len(opt.param_groups) == 1
    assert {k:opt.param_groups[0][k] for k in settings} == settings
    assert sizes == [len(list(learn.model.parameters()))+2]

@pytest.mark.cell('Optimizers', "a step of SGD as published: decay is part of the gradient, as in torch")
def test_a_coupled_step_of_sgd(mini):
    "Decay is part of the gradient, as in torch, and applies to BatchNorm"
    learn,_ = looked_at(mini, 'sesemi-80ep', epochs=1, warmup=0.)
    p = next(m for m in learn.model.modules() if isinstance(m, torch.nn.BatchNorm2d)).weight
    learn.create_opt()
    learn.opt.set_hypers(lr=.1)
    for o in learn.model.parameters(): o.grad = torch.zeros_like(o)
    before = p.detach().clone()
    learn.opt.step()
    torch.testing.assert_close(p.detach(), before*(1-.1*5e-4*1.9)) # Nesterov: gradient + 0.9 times the buffer that holds it

@needs_real
@pytest.mark.parametrize('name,steps', [('sesemi-80ep',418),('sesemi-5ep',558)])
def test_steps_in_an_epoch_on_the_real_table(name, steps):
    config = resolved(dict(recipe=name, path=str(real), workers=0, precision='fp32'))
    dls = setup.make_dls('nette', str(real), 50, size=32, bs=config['bs'])
    files = setup.unlabeled_files(dls, config['unlabeled'])
    n_epoch,(per_epoch,) = setup.epochs_of(config, dls, files)
    assert len(files) == 13394 and per_epoch.n == steps and n_epoch == config['epochs']
    assert round(418*128/len(dls.train_ds), 2) == 5.65

def test_dropout_is_on_the_label_branch_alone(mini):
    learn,_ = looked_at(mini, 'sesemi-80ep', epochs=1, warmup=0.)
    assert [type(o).__name__ for o in learn.model.fc] == ['Dropout','Linear'] and learn.model.fc[0].p == .5
    tb = learn.sesemi._branch
    learn.model.train()
    for m in learn.model.modules():
        if isinstance(m, torch.nn.BatchNorm2d): m.eval()
    x = torch.randn(4,3,32,32)
    with torch.no_grad():
        assert torch.equal(tb.rotated(x), tb.rotated(x)) and not torch.equal(learn.model(x), learn.model(x))

# -- augmentation, against torchvision's
def crops(n=3000, side=100):
    "Area and aspect ratio of crops, fastai's and torchvision's"
    im,rrc = PILImage.create(np.zeros((side,side,3), np.uint8)),next(o for o in item_tfms('sesemi', 64) if isinstance(o, RandomResizedCrop))
    ours = []
    for _ in range(n):
        rrc.before_call(im, 0)
        ours.append(rrc.cp_size)
    theirs = [T.RandomResizedCrop.get_params(im, (.2,1.), (3/4,4/3))[2:][::-1] for _ in range(n)]
    return [np.array([(w*h/side**2,w/h) for w,h in o]) for o in (ours,theirs)]

def test_crops_have_the_published_distribution():
    random.seed(0); torch.manual_seed(0)
    ours,theirs = crops()
    for i,what in enumerate(('area','ratio')): assert ks_2samp(ours[:,i], theirs[:,i]).statistic < .04, what
    assert ours[:,0].min() > .19 and ours[:,0].max() <= 1 and abs(np.log(ours[:,1])).max() < math.log(4/3)+.03

def test_gamma_flip_and_order_are_the_published_ones():
    names = [type(o).__name__ for o in item_tfms('sesemi', 64) if o.split_idx in (None,0)]
    assert sorted(names) == ['FlipItem','GammaCorrection','RandomResizedCrop']
    flip,gamma = (next(o for o in item_tfms('sesemi', 64) if type(o).__name__ == n) for n in ('FlipItem','GammaCorrection'))
    assert flip.p == .5 and (gamma.low,gamma.high) == (.5,1.5)
    im = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20,20,3), dtype=np.uint8))
    random.seed(0)
    drawn = []
    for _ in range(300):
        out = gamma(PILImage.create(np.array(im)), split_idx=0)
        drawn.append(gamma.gamma)
        diff = np.abs(np.array(out).astype(int)-np.array(T.functional.adjust_gamma(im, gamma.gamma)).astype(int))
        assert diff.max() <= 1 # torchvision rounds down
    assert ks_2samp(drawn, np.random.default_rng(0).uniform(.5, 1.5, 3000)).pvalue > .01

def test_validation_images_are_those_of_torchvision():
    y,x = np.mgrid[:200,:300]
    im = PILImage.create(np.stack([255*x/300, 255*y/200, 128+100*np.sin(x/9)*np.cos(y/7)], -1).astype(np.uint8))
    ours = np.array(Pipeline(item_tfms('sesemi', 224), split_idx=1)(im)).astype(float)
    theirs = np.array(T.Compose([T.Resize(256), T.CenterCrop(224)])(im)).astype(float)
    assert ours.shape == theirs.shape and np.abs(ours-theirs).mean() < 1.5

def test_help_tells_the_defaults():
    "Each value in brackets is that of the recipe fastai"
    from fastcore.docments import docments
    import re
    told = {k:m.group(1) for k,v in docments(experiment.train_run, returns=False).items() if v and (m := re.search(r'\[(.+)\]$', v))}
    base = resolved(dict(precision='fp32'))
    assert len(told) > 20
    for k,v in told.items():
        if k != 'precision': assert str(base[k]) == v, k

def test_every_option_is_in_the_recipe():
    import inspect
    from sesemi_fastai.folder import not_options
    assert set(inspect.signature(experiment.train_run).parameters)-set(not_options) == set(resolved({}))
    assert all(set(o) <= set(resolved({})) for o in recipes.values())

@pytest.mark.cell('Schedules and fits', 'epochs counted over the unlabeled images or in steps')
def test_lengths_follow_the_unit_of_the_epochs(mini, monkeypatch):
    "Ramp-up, rotations alone and warm-up are given in the unit of --epochs; with steps fastai's epochs are others"
    from sesemi_fastai import experiment as exp
    seen,fit = {},exp.schedules['poly']
    def poly(learn, n_epoch, lr, **kw):
        seen.update(n_epoch=n_epoch, rampup=learn.sesemi.rampup, rot_only=learn.sesemi.rot_only, warmup=kw['warmup'])
        fit(learn, n_epoch, lr, **kw)
    monkeypatch.setitem(exp.schedules, 'poly', poly)
    exp.train_run(dataset='mini', path=str(mini), noise=50, size=32, arch='xresnet10_half', bs=32, workers=0, sched='poly', epochs=36,
                  epoch_unit='steps', rampup=18, rot_only=9, warmup=12, bar=False)
    assert seen == dict(n_epoch=4, rampup=2, rot_only=1, warmup=pytest.approx(4/3))

def test_a_data_folder_with_the_name_of_an_option():
    "`train` is a folder where data are meant, and the training images where unlabeled ones are"
    for path in ('train','/somewhere/train'):
        c = resolved(dict(path=path, store=path, unlabeled=path))
        assert c['path'] == c['store'] == 'train' and c['unlabeled'] == ('train' if path == 'train' else './train')
    assert resolved(resolved(dict(path='/somewhere/train', unlabeled='/somewhere/all'))) == resolved(dict(path='train', unlabeled='./all'))

def test_rates_of_groups_and_of_all_layers():
    "The fused optimizers keep a rate for each group, as fastai's do; the polynomial schedule has one and says so"
    w = lambda: [[torch.zeros(2, requires_grad=True)] for _ in range(2)]
    for f in (ranger, ranger_fused, ranger_gc): assert [h['lr'] for h in f(w(), lr=slice(1e-5, 1e-3)).hypers] == pytest.approx([1e-5, 1e-3])
    with pytest.raises(InputError, match='one rate for all layers'): Learner.fit_poly(None, 2, slice(1e-5, 1e-3))
