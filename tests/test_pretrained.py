"Runs that begin from weights of an earlier training, and the preset for them"
import shutil, zipfile
import pytest, torch, torchvision
from fastai.vision.all import Normalize, imagenet_stats, resnet18, vision_learner
from sesemi_fastai import arch as arch_module, experiment
from sesemi_fastai.arch import begin_from, body_and_head, make_model, pretrained_stats
from sesemi_fastai.checks import idle_options
from sesemi_fastai.core import InputError
from sesemi_fastai.folder import is_done
from sesemi_fastai.experiment import resume_run, train_run
from sesemi_fastai.methods import robust_cbs
from sesemi_fastai.mini import make_mini
from sesemi_fastai.recipe import resolved
from sesemi_fastai.forward import ForwardCorrection
from sesemi_fastai.robust import RobustLoss
from sesemi_fastai.table import conditions, published_beside
from sesemi_fastai.weights import read_weights

small = dict(dataset='mini', size=32, arch='xresnet10_half', bs=8, workers=0, epochs=1, precision='fp32', unlabeled='none', bar=False)

@pytest.fixture(scope='module')
def mini(tmp_path_factory): return str(make_mini(tmp_path_factory.mktemp('pretrained')/'mini', 60, 20))

@pytest.fixture(scope='module')
def weights(mini, tmp_path_factory):
    "A file of a run of one epoch"
    out = tmp_path_factory.mktemp('pretrained')/'first'
    train_run(**small, path=mini, out=str(out), export_weights='pth')
    return str(out/'model.pth')

def set_up(monkeypatch, **kwargs):
    "The Learner of a run, as it is before the first step"
    found = {}
    class Done(Exception): pass
    def stop(learn, n_epoch, lr, **kw):
        found.update(learn=learn, lr=lr)
        raise Done
    monkeypatch.setitem(experiment.schedules, 'one_cycle', stop)
    with pytest.raises(Done): train_run(**{**small, **kwargs})
    monkeypatch.undo()
    return found['learn'],found['lr']

@pytest.mark.cell('Learner', 'weights to begin from (`--pretrained FILE`, with dropout as well): all layers but the last have them, and '
                             'learn at a smaller rate')
@pytest.mark.parametrize('dropout', [0.,.5])
def test_all_but_the_last_layer_begin_from_a_file(mini, weights, monkeypatch, dropout):
    learn,lr = set_up(monkeypatch, path=mini, pretrained=weights, dropout=dropout)
    fresh,_ = set_up(monkeypatch, path=mini)
    state = read_weights(weights)
    (body,head),(new,_) = body_and_head(learn.model),body_and_head(fresh.model)
    names = [k for k,_ in fresh.model.named_parameters()]
    assert [o.shape for o in head] == [state[k].shape for k in names[-2:]] and not torch.equal(head[0], state[names[-2]])
    for k,p,q in zip(names, body, new):
        assert torch.equal(p, state[k])
        assert p.ndim == 1 or not torch.equal(q, state[k]), k
    stats = [k for k in state if 'running_mean' in k]
    assert all(torch.equal(dict(learn.model.named_buffers())[k], state[k]) for k in stats) and stats
    assert (lr.start,lr.stop) == (8e-5,8e-3) and learn.pretrained and not fresh.pretrained
    learn.create_opt()
    learn.opt.set_hyper('lr', lr)
    assert [round(h['lr'], 6) for h in learn.opt.hypers] == [8e-5,8e-3]
    assert sum(len(o) for o in learn.opt.param_lists) == len(names)

@pytest.mark.cell('Resume', 'a run that began from pretrained weights: it goes on from its checkpoint and ends with the same weights')
@pytest.mark.parametrize('unlabeled', ['none','train'])
def test_a_killed_run_from_pretrained_weights_goes_on(mini, weights, tmp_path, monkeypatch, unlabeled):
    kw = dict(small, path=mini, pretrained=weights, epochs=2, robust='auto', unlabeled=unlabeled, lr_mult=10., export_weights='pth')
    whole = train_run(**kw, out=str(tmp_path/'whole'))
    after = experiment.Record.after_epoch
    def killed(self):
        after(self)
        if self.epoch == 1: raise KeyboardInterrupt
    monkeypatch.setattr(experiment.Record, 'after_epoch', killed)
    with pytest.raises(KeyboardInterrupt): train_run(**kw, out=str(tmp_path/'cut'))
    monkeypatch.undo()
    o = resume_run(tmp_path/'cut', bar=False)
    a,b = (read_weights(tmp_path/k/'model.pth') for k in ('whole','cut'))
    assert o['accuracy'] == whole['accuracy'] and all(torch.equal(a[k], b[k]) for k in a)
    assert o['config']['pretrained'].startswith('model.pth [') and o['overrides']['pretrained'] == o['config']['pretrained']
    assert 'xresnet10_half from the weights model.pth [' in conditions([o]) and '(divided by 10 below the last layer)' in conditions([o])
    # a record from before the option
    assert 'from the weights' not in conditions([{**o, 'config':{k:v for k,v in o['config'].items() if k not in ('pretrained','lr_mult')}}])

@pytest.mark.cell('Resume', 'weights that the run began from change or vanish: one line, and it goes on when they are back')
def test_weights_that_vanish_while_a_run_trains(mini, weights, tmp_path, monkeypatch):
    file = shutil.copyfile(weights, tmp_path/'w.pth')
    def killed(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(experiment, '_leave_results', killed)
    with pytest.raises(KeyboardInterrupt): train_run(**small, path=mini, pretrained=str(file), out=str(tmp_path/'r'))
    monkeypatch.undo()
    file.unlink()
    with pytest.raises(InputError, match='w.pth is no file'): resume_run(tmp_path/'r', bar=False)
    torch.save({**read_weights(weights), 'extra.num_batches_tracked':torch.tensor(0)}, file)
    with pytest.raises(InputError, match='other settings.*pretrained w.pth'): resume_run(tmp_path/'r', bar=False)
    shutil.copyfile(weights, file)
    o = resume_run(tmp_path/'r', bar=False)
    file.unlink()
    assert o['status'] == 'done' and not (tmp_path/'r/checkpoints').exists()
    kw = {k:v for k,v in dict(small, path=mini, pretrained=str(file)).items() if k != 'bar'}
    assert is_done(tmp_path/'r', kw) and not is_done(tmp_path/'r', {**kw, 'pretrained':'other.pth'}) and not is_done(tmp_path/'r', {**kw, 'pretrained':weights})
    assert {'pretrained','lr_mult'} & {*o['overrides']} == {'pretrained'}
    def published(**kw): return len(published_beside([{**o, 'config':{**o['config'], 'dataset':'nette', **kw}}]))
    assert published() == 0 < published(pretrained=None)

def test_the_weights_that_a_run_began_from_are_not_replaced(mini, weights, tmp_path):
    file = shutil.copyfile(weights, tmp_path/'model.pth')
    with pytest.raises(InputError, match='would be replaced'): train_run(**small, path=mini, pretrained=str(file), out=str(tmp_path), export_weights='pth')

@pytest.mark.cell('Keeping', 'a run from pretrained weights is exported: the file needs fastai only')
def test_an_exported_pretrained_learner_needs_fastai_only(mini, weights, tmp_path):
    train_run(**small, path=mini, pretrained=weights, robust='auto', out=str(tmp_path/'r'), export=True)
    with zipfile.ZipFile(tmp_path/'r/export.pkl') as z:
        data = z.read(next(o for o in z.namelist() if o.endswith('data.pkl')))
    assert b'fastai' in data and b'sesemi_fastai' not in data

@pytest.mark.parametrize('arch, want', [('resnet18',imagenet_stats), ('tf_efficientnet_lite0',((.5,)*3,)*2)])
def test_images_are_normalised_as_the_weights_ask_for(mini, monkeypatch, arch, want):
    if arch.startswith('tf'): pytest.importorskip('timm', reason='timm is not installed (extra timm)')
    monkeypatch.setattr(arch_module, '_published', lambda arch: make_model(arch, 9).state_dict())
    learn,_ = set_up(monkeypatch, path=mini, arch=arch, pretrained='published', unlabeled='train')
    for dl in learn.dls.loaders:
        norm = next(o for o in dl.after_batch.fs if isinstance(o, Normalize))
        assert [round(v, 4) for v in norm.mean.flatten().tolist() + norm.std.flatten().tolist()] == [round(v, 4) for o in want for v in o]
        x,(low,high) = dl.one_batch()[0],[[(end-m)/s for m,s in zip(*want)] for end in (0,1)]
        assert min(low)-.01 <= x.min() < min(low)+1 and max(high)-1.5 < x.max() <= max(high)+.01

@pytest.mark.cell('Learner', 'published weights of torchvision (`--pretrained published`, fetched by torchvision itself; faked here)')
def test_published_weights(monkeypatch):
    want = torchvision.models.resnet18(num_classes=1000).state_dict()
    monkeypatch.setattr(torchvision.models._api, 'load_state_dict_from_url', lambda url,**kw: want)
    m = make_model('resnet18', 3, pretrained='published')
    assert torch.equal(m.layer4[1].conv2.weight, want['layer4.1.conv2.weight']) and m.fc.out_features == 3
    def offline(url, **kw): raise OSError('no network here')
    monkeypatch.setattr(torchvision.models._api, 'load_state_dict_from_url', offline)
    with pytest.raises(InputError, match='cannot be fetched .no network here'): make_model('resnet18', 3, pretrained='published')

def test_statistics_of_torchvision():
    assert pretrained_stats('efficientnet_v2_l', 'published') == ([.5]*3,)*2 and pretrained_stats('resnet50', 'published') == imagenet_stats

def test_networks_of_torchvision_that_load_their_weights_in_a_way_of_their_own(monkeypatch, tmp_path):
    "Older names of DenseNet, another version of MNASNet"
    for arch in ('densenet121','mnasnet0_5'):
        m = torchvision.models.get_model(arch, num_classes=1000)
        old = {(k.replace('.norm1.', '.norm.1.').replace('.conv1.', '.conv.1.').replace('.norm2.', '.norm.2.').replace('.conv2.', '.conv.2.')
                if 'denselayer' in k else k):v for k,v in m.state_dict().items() if 'num_batches' not in k or arch != 'densenet121'}
        state = type(m.state_dict())(old)
        if arch == 'mnasnet0_5': state._metadata = m.state_dict()._metadata
        monkeypatch.setattr(torchvision.models._api, 'load_state_dict_from_url', lambda url,**kw: state)
        new = make_model(arch, 3, pretrained='published')
        torch.save(m.state_dict(), tmp_path/'w.pth')
        again = make_model(arch, 3, pretrained=str(tmp_path/'w.pth'))
        for (k,a),b,c in zip(list(m.named_parameters())[:-2], new.parameters(), again.parameters()): assert torch.equal(a, b) and torch.equal(a, c), k

def test_published_weights_of_timm(monkeypatch):
    timm = pytest.importorskip('timm', reason='timm is not installed (extra timm)')
    want,create = timm.create_model('resnet10t', num_classes=1000),timm.create_model
    monkeypatch.setattr(timm, 'create_model', lambda arch,pretrained=False,**kw: want if pretrained else create(arch, **kw))
    m = make_model('resnet10t', 3, pretrained='published')
    assert torch.equal(m.layer4[0].conv2.weight, want.layer4[0].conv2.weight) and m.fc.out_features == 3
    with pytest.raises(InputError, match='other heads than one'): make_model('repvit_m0_9', 3, pretrained='published')
    assert pretrained_stats('tf_efficientnet_lite0', 'published') == ([.5]*3,)*2 and pretrained_stats('tf_efficientnet_lite0', 'w.pth') == imagenet_stats
    for arch in ('resnet10t','convnext_atto'): begin_from(make_model(arch, 3, dropout=.5), make_model(arch, 9).state_dict())
    monkeypatch.setattr(timm, 'is_model_pretrained', lambda arch: False)
    with pytest.raises(InputError, match='publish weights of resnet10t'): make_model('resnet10t', 3, pretrained='published')

@pytest.mark.parametrize('kw, says', [
    (dict(pretrained='/nowhere/w.pth'), 'is no file'), (dict(pretrained='published'), 'publish weights of xresnet10_half'),
    (dict(pretrained='FILE', arch='xresnet18'), 'another network than XResNet'), (dict(pretrained='FILE', sched='poly'), 'one rate for all layers'),
    (dict(pretrained='FILE', lr_mult=.5), 'lr_mult=0.5')])
def test_mistakes_are_told_in_one_line(mini, weights, tmp_path, kw, says):
    kw = {k:weights if v == 'FILE' else v for k,v in kw.items()}
    with pytest.raises(InputError, match=says): train_run(**{**small, **kw}, path=mini, out=str(tmp_path/'r'))
    assert not (tmp_path/'r').exists()

def test_a_rate_for_layers_that_are_not_there_is_idle():
    assert idle_options(dict(lr_mult=10.)) == ['lr_mult'] and not idle_options(dict(lr_mult=10., pretrained='published'))
    assert resolved({})['lr_mult'] is None and resolved(dict(pretrained='published'))['lr_mult'] == 100

@pytest.mark.cell('Robust losses', 'the preset with pretrained weights (`vision_learner`, `--pretrained`) begins early; passes that are given stay')
def test_the_preset_begins_early_with_pretrained_weights(make_dls, make_learn, mini, weights, monkeypatch, tmp_path):
    def passes(learn, epochs=3):
        loss,seen = learn.robust_loss.loss_func_of_training,[]
        begin = type(loss).begin
        monkeypatch.setattr(type(loss), 'begin', lambda self,*a: (begin(self, *a), seen.append((self.taken,self.doubted)))[0])
        with learn.no_bar(), learn.no_logging(): learn.fit(epochs)
        monkeypatch.undo()
        return seen
    early = [(0,0),(1,0),(1,1)]
    fetched = vision_learner(make_dls(), resnet18, pretrained=False, cbs=robust_cbs('auto'), path=tmp_path)
    assert passes(fetched) == [(0,0)]*3
    fetched.pretrained = True # as `vision_learner` says where it fetches weights
    fetched.remove_cb(fetched.robust_loss)
    fetched.add_cbs(robust_cbs('auto'))
    assert passes(fetched) == early
    learn,_ = set_up(monkeypatch, path=mini, pretrained=weights, robust='auto')
    assert passes(learn) == early
    for kw,want in ((dict(takeover=(1,3)),[(0,0),(0,0),(.5,0)]), (dict(doubt=None),[(0,0),(1,0),(1,0)]), (dict(doubt=(1,3)),[(0,0),(1,0),(1,.5)]),
                    (dict(takeover=(0,1), doubt=(1,3)),[(0,0),(1,0),(1,.5)])):
        learn = make_learn(cbs=RobustLoss(ForwardCorrection(lam=3, **kw)))
        learn.pretrained = True
        assert passes(learn) == want, kw
    learn = make_learn(cbs=RobustLoss(ForwardCorrection(lam=3, doubt=(1,3))))
    with pytest.raises(InputError, match='from 4 on'): passes(learn)
    class Own(torch.nn.CrossEntropyLoss): pretrained = property(lambda self: 'imagenet')
    learn = make_learn(cbs=RobustLoss(Own())) # what else has that name stays
    learn.pretrained = True
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    for kw in (dict(takeover='Auto'), dict(takeover=None), dict(doubt='never'), dict(takeover=(3,3))):
        with pytest.raises(InputError, match='auto'): ForwardCorrection(lam=3, **kw)
