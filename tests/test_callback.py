"The callback in the company of everything a Learner does"
import copy, os, subprocess, sys, warnings
from functools import partial
import matplotlib; matplotlib.use('Agg')
import numpy as np, pandas as pd, pytest, torch
from torch import nn
from fastai.callback.data import WeightedDL
from fastai.vision.all import (Adam, Callback, CancelFitException, CrossEntropyLossFlat, CSVLogger, CutMix, DataLoader, DataLoaders,
    GradientAccumulation, L, Lamb, Learner, Lookahead, MixUp, OptimWrapper, RAdam, RandomResizedCrop, TensorCategory, TensorImage, Transform,
                               Resize, SaveModelCallback, SGD, accuracy, get_image_files, load_learner, ranger, resnet18,
                               vision_learner)
from sesemi_fastai.optim import ranger_fused
from sesemi_fastai.callback import SESEMI, HeadInOptimizer
from sesemi_fastai.core import InputError
from sesemi_fastai.steps import StepsPerEpoch
from sesemi_fastai.stream import OwnRandom, UnlabeledStream
from conftest import tiny_model

class Quiet:
    "A block without bars and rows"
    def __init__(self, learn): self.learn = learn
    def __enter__(self): self.logger,self.learn.logger = self.learn.logger,lambda o: None
    def __exit__(self, *args): self.learn.logger = self.logger

def fit(learn, n=1, **kwargs):
    with Quiet(learn): learn.fit(n, .01, **kwargs)
    return learn

def traces(learn):
    "What SESEMI could have left behind"
    hooks = sum(len(m._forward_hooks)+len(m._forward_pre_hooks) for m in learn.model.modules())
    n_opt = sum(len(o) for o in learn.opt.param_lists)
    return hooks,n_opt-len(L(learn.model.parameters())),'_with_events' in learn.__dict__,[m.name for m in learn.metrics]

CLEAN = (0, 0, False, ['accuracy'])

# -- ways to add it, and what the recorder shows
def in_learner(make_learn): return fit(make_learn(cbs=SESEMI()))
def in_fit(make_learn): return fit(make_learn(), cbs=SESEMI())
def added(make_learn): return fit(make_learn().add_cb(SESEMI()))
def as_class(make_learn): return fit(make_learn(cbs=SESEMI))

@pytest.mark.cell('Learner', 'given to the Learner, to fit, with add_cb, as a class')
def test_ways_to_add_it_give_the_same_run(make_learn):
    learns = [f(make_learn) for f in (in_learner, in_fit, added, as_class)]
    for learn in learns:
        assert learn.recorder.metric_names == ['epoch','train_loss','valid_loss','accuracy','rot_loss','rot_acc','rot_weight','time']
        assert len(learn.recorder.values[0]) == 6
        assert learn.recorder.values == learns[0].recorder.values
        assert traces(learn) == CLEAN
    rot_loss,rot_acc,w = learns[0].recorder.values[0][-3:]
    assert 0 < rot_loss < 10 and 0 <= rot_acc <= 1 and w == 1

@pytest.mark.cell('Keeping', 'SaveModelCallback on a rotation column')
@pytest.mark.cell('Loggers', 'CSVLogger: all columns')
def test_columns_reach_csv_logger_and_save_model(make_learn, tmp_path):
    learn = fit(make_learn(cbs=SESEMI()), 2, cbs=[CSVLogger(tmp_path/'h.csv'), SaveModelCallback('rot_loss', fname='best')])
    df = pd.read_csv(tmp_path/'h.csv')
    assert df.columns.tolist() == ['epoch','train_loss','valid_loss','accuracy','rot_loss','rot_acc','rot_weight','time'] and len(df) == 2
    assert df.rot_loss.tolist() == pytest.approx([v[-3] for v in learn.recorder.values], abs=1e-4)
    state = torch.load(tmp_path/'models/best.pth', weights_only=True)
    assert state.keys() == learn.model.state_dict().keys()

def test_recorder_loss_is_the_supervised_one(make_learn):
    "A rotation loss a thousand times as heavy does not show in the first step's loss"
    class First(Callback):
        order = 100
        def before_fit(self): self.seen = []
        def after_loss(self):
            if self.training: self.seen.append((self.learn.loss.item(), self.learn.loss_grad.item()))
    a,b = First(),First()
    fit(make_learn(), cbs=a)
    fit(make_learn(cbs=SESEMI(weight=1000)), cbs=b)
    assert a.seen[0][0] == pytest.approx(b.seen[0][0], abs=1e-5) == pytest.approx(a.seen[0][1])
    assert b.seen[0][1] > 500

def test_rotation_task_is_learned(make_learn):
    learn = make_learn(cbs=SESEMI(), opt_func=Adam)
    with Quiet(learn): learn.fit(8, 5e-3)
    first,last = learn.recorder.values[0],learn.recorder.values[-1]
    assert last[-2] > .6 and last[-2] > first[-2]+.1 and last[-3] < first[-3]

@pytest.mark.parametrize('rampup,expected', [(0,[1,1,1]), (2,[np.exp(-5),np.exp(-5/4),1])])
def test_rampup(make_learn, rampup, expected):
    class Weights(Callback):
        order = SESEMI.order+1
        def before_fit(self): self.w = []
        def after_loss(self):
            if self.training and self.iter == 0:
                self.w.append(((self.learn.loss_grad-self.learn.loss)/self.sesemi._seen[0][0]).item())
    w = Weights()
    learn = make_learn(cbs=SESEMI(rampup=rampup))
    fit(learn, 3, cbs=w)
    assert w.w == pytest.approx(expected, rel=1e-3)

# -- as if it were not there
@pytest.mark.cell('Evaluation', 'validate, get_preds: bit-identical with and without the callback; summary, model[0], show_results after a fit')
def test_evaluation_is_bit_identical(make_learn):
    plain,sesemi = make_learn(),make_learn(cbs=SESEMI())
    fit(sesemi)
    plain.model.load_state_dict(sesemi.model.state_dict())
    assert plain.validate() == sesemi.validate()
    for a,b in zip(plain.get_preds(), sesemi.get_preds()): assert torch.equal(a, b)
    assert traces(sesemi) == CLEAN
    sesemi.show_results()
    sesemi.summary()
    assert isinstance(sesemi.model[0], nn.Module)

def test_validate_before_any_fit(make_learn):
    plain,sesemi = make_learn(),make_learn(cbs=SESEMI())
    assert plain.validate() == sesemi.validate()
    assert '_with_events' not in sesemi.__dict__

@pytest.mark.cell('Schedules and fits', 'lr_find finds what it finds without the callback')
def test_lr_find_is_that_of_plain_training(make_learn):
    found = []
    for cbs in (None, SESEMI()):
        learn = make_learn(cbs=cbs)
        before = copy.deepcopy(learn.model.state_dict())
        with learn.no_bar(): found.append((learn.lr_find(show_plot=False, num_it=20).valley, learn.recorder.losses))
        assert all(torch.equal(a, b) for a,b in zip(before.values(), learn.model.state_dict().values()))
    assert found[0] == found[1]
    assert 'rot_loss' in fit(learn).recorder.metric_names

@pytest.mark.cell('Keeping', 'export: loads in a process where this package cannot be imported, predicts the same, holds no rotation head, loader or file list')
def test_export_is_a_plain_learner(make_learn, tmp_path, image_folder):
    learn = fit(make_learn(cbs=SESEMI(get_image_files(image_folder))))
    item = get_image_files(image_folder)[0]
    learn.export('e.pkl')
    assert fit(learn).recorder.values, "the Learner goes on after export"
    expected = load_learner(tmp_path/'e.pkl').predict(item)[2]
    code = ("import sys, warnings; warnings.simplefilter('ignore'); sys.modules['sesemi_fastai'] = None; from fastai.vision.all import *\n"
            f"learn = load_learner({str(tmp_path/'e.pkl')!r})\n"
            "assert not any('rot' in n.lower() for n,_ in learn.model.named_modules()), 'rotation head'\n"
            "assert [cb.name for cb in learn.cbs if 'sesemi' in repr(type(cb))] == []\n"
            "with learn.no_bar(): print(learn.predict("+repr(str(item))+")[2].tolist())")
    res = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path)
    assert res.returncode == 0, res.stderr
    assert eval(res.stdout.splitlines()[-1]) == pytest.approx(expected.tolist(), abs=1e-6)
    assert str(image_folder).encode() not in (tmp_path/'e.pkl').read_bytes(), "no file list travels along"

@pytest.mark.cell('Keeping', 'copy and deepcopy')
def test_copies_keep_the_settings(make_learn):
    for f in (copy.copy, copy.deepcopy): assert f(SESEMI(weight=.5, bn='joint')).weight == .5
    learn = fit(make_learn(cbs=SESEMI(weight=.5)))
    other = copy.deepcopy(learn)
    assert other.sesemi.learn is other and other.sesemi.weight == .5
    assert 'rot_loss' in fit(other).recorder.metric_names and traces(other) == CLEAN
    assert learn.sesemi.learn is learn

@pytest.mark.cell('Evaluation', 'validate from another callback in the middle of a fit')
def test_validation_in_the_middle_of_a_fit_leaves_it_on(make_learn):
    class Peek(Callback):
        order = 90
        def after_epoch(self):
            if not self.lock.locked(): self.learn.validate()
    learn = fit(make_learn(cbs=SESEMI()), 3, cbs=Peek())
    assert learn.sesemi.n_images == 3*len(learn.dls.train)*8 and traces(learn) == CLEAN

def test_columns_stand_under_their_names(make_learn):
    learn = make_learn(cbs=SESEMI())
    learn.recorder.train_metrics = True
    fit(learn)
    row = dict(zip(learn.recorder.metric_names[1:-1], learn.recorder.values[0]))
    assert len(row) == len(learn.recorder.values[0]) and row['valid_rot_loss'] is None
    assert .5 < row['train_rot_loss'] < 5 and 0 <= row['train_rot_acc'] <= 1 and 0 <= row['valid_accuracy'] <= 1

def test_items_by_default_are_the_training_files(make_learn, make_dls):
    "As a list of paths they give the same run"
    dls = make_dls()
    a,b = (fit(make_learn(cbs=SESEMI(source), dls=make_dls())) for source in (None, list(dls.train_ds.items)))
    assert a.recorder.values == b.recorder.values

# -- optimizers
wrapped_sgd = partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=.9, nesterov=True))
wrapped_adamw = partial(OptimWrapper, opt=torch.optim.AdamW)
def lookahead_adamw(params, lr): return Lookahead(OptimWrapper(params, opt=torch.optim.AdamW, lr=lr))

@pytest.mark.cell('Optimizers', 'SGD, Adam, RAdam, ranger, ranger_fused, Lamb, torch SGD-Nesterov, torch AdamW, Lookahead of it; optimizer '
                                'made before and after the callback is added; save and load with its state')
@pytest.mark.parametrize('opt_func', [SGD, Adam, RAdam, ranger, ranger_fused, Lamb, wrapped_sgd, wrapped_adamw, lookahead_adamw],
                         ids=['SGD','Adam','RAdam','ranger','ranger_fused','Lamb','torch SGD','torch AdamW','Lookahead of torch AdamW'])
@pytest.mark.parametrize('fitted_before', [False,True])
def test_head_trains_in_the_optimizer_and_leaves_it(make_learn, opt_func, fitted_before):
    learn = make_learn(opt_func=opt_func)
    if fitted_before: fit(learn)
    sesemi = SESEMI()
    learn.add_cb(sesemi)
    class Head(Callback):
        def before_train(self): self.before = copy.deepcopy(self.sesemi.rot_head.state_dict())
    head = Head()
    fit(learn, 2, cbs=head)
    after = sesemi.rot_head.state_dict()
    assert all(not torch.equal(head.before[k], after[k]) for k in after), "weights of the second epoch's start have moved"
    assert traces(learn) == CLEAN
    learn.save('m', with_opt=True)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        learn.load('m', with_opt=True)
    fit(learn)

def test_optimizer_state_of_the_head_survives_between_epochs(make_learn):
    "Two epochs with validation between give the weights of the same steps without leaving the optimizer"
    def run(pause):
        a,b = (nn.Parameter(torch.ones(3)) for _ in 'ab')
        opt = ranger([a], lr=.1)
        head = HeadInOptimizer([b])
        head.enter(opt, True)
        for i in range(20):
            if pause and i in (3,9,10): head.leave(); assert len(opt.param_lists[-1]) == 1; head.enter(opt, True)
            ((a-2)**2+(b+1)**2).sum().backward()
            opt.step(); opt.zero_grad()
        return torch.stack([a.detach(), b.detach()])
    assert torch.equal(run(False), run(True))

def test_slow_weights_of_the_head_stay_where_no_step_has_moments():
    a,b = (nn.Parameter(torch.ones(3)) for _ in 'ab')
    opt,head = Lookahead(SGD([a], lr=.1)),HeadInOptimizer([b])
    for _ in range(3):
        head.enter(opt, True)
        for _ in range(7):
            ((a-2)**2+(b+1)**2).sum().backward()
            opt.step(); opt.zero_grad()
        head.leave()
    whole = nn.Parameter(torch.ones(3))
    other = Lookahead(SGD([whole], lr=.1))
    for _ in range(21):
        ((whole+1)**2).sum().backward()
        other.step(); other.zero_grad()
    assert torch.equal(b, whole)

def test_moments_of_the_head_go_with_the_others(make_learn):
    "as `unfreeze` clears them"
    learn = fit(make_learn(cbs=SESEMI(), opt_func=Adam))
    def moments(): return [k for p in head.params for k,v in learn.opt.state[p].items() if torch.is_tensor(v)]
    for cleared,head in ((False,learn.sesemi._head_params),(True,learn.sesemi._head_params)):
        if cleared: learn.opt.clear_state()
        head.enter(learn.opt, True)
        assert bool(moments()) != cleared
        head.leave()

@pytest.mark.cell('Optimizers', 'weight decay of biases as the Learner has it')
def test_weight_decay_of_the_head_follows_the_learner(make_learn):
    for wd_bn_bias in (False,True):
        class Look(Callback):
            def before_batch(self):
                if self.training: self.decays = [self.opt.state[p].get('do_wd', True) for p in self.sesemi.rot_head.parameters()]
        look = Look()
        fit(make_learn(opt_func=Adam, wd_bn_bias=wd_bn_bias, cbs=SESEMI()), cbs=look)
        assert look.decays == [True, wd_bn_bias]

# -- vision_learner
@pytest.mark.cell('Learner', 'vision_learner with freeze, unfreeze, fine_tune, slices of rates: the label head trains when frozen, the '
                             'rotation head at the last rate, the groups keep their number')
def test_vision_learner_groups_and_fine_tune(make_dls, tmp_path):
    learn = vision_learner(make_dls(), resnet18, pretrained=False, metrics=accuracy, cbs=SESEMI(), path=tmp_path)
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == 'progress'])
    seen = []
    class Look(Callback):
        def before_train(self):
            head = [id(p) for p in self.sesemi.rot_head.parameters()]
            seen.append((len(self.opt.param_lists), [id(p) for p in self.opt.param_lists[-1][-2:]] == head,
                         all(p.requires_grad for p in self.model[1].parameters())))
    with Quiet(learn):
        learn.freeze()
        frozen = copy.deepcopy(learn.model[0][0].weight.detach())
        learn.fit(1, 1e-3, cbs=Look())
        assert torch.equal(frozen, learn.model[0][0].weight)
        learn.fine_tune(1, 1e-3, cbs=Look())
        learn.fit(1, slice(1e-5,1e-3), cbs=Look())
    assert seen == [(3,True,True)]*4
    assert traces(learn)[:3] == (0,0,False)

# -- mixing and accumulation
@pytest.mark.cell('Accumulation and mixing', 'MixUp, CutMix')
@pytest.mark.parametrize('bn', ['separate','joint'])
@pytest.mark.parametrize('cb', [MixUp, CutMix])
def test_mixing(make_learn, cb, bn):
    learn = fit(make_learn(cbs=[SESEMI(bn=bn), cb()]), 2)
    assert np.isfinite(learn.recorder.values[-1]).all() and traces(learn) == CLEAN

@pytest.mark.cell('Accumulation and mixing', 'GradientAccumulation divides both losses alike')
def test_accumulated_gradient_is_that_of_the_sum(make_learn):
    "With the loss divided by k in each of k micro-batches, gradients are k-step means: rotation and supervised part alike"
    class Grads(Callback):
        order = GradientAccumulation.order+1
        def before_fit(self): self.ratio = []
        def after_loss(self):
            if self.training: self.ratio.append(((self.learn.loss_grad*2-self.learn.loss)/self.sesemi._seen[0][0]).item() if self.iter == 0 else None)
    g = Grads()
    fit(make_learn(cbs=[SESEMI(weight=3), GradientAccumulation(16)]), cbs=g)
    assert g.ratio[0] == pytest.approx(3, rel=1e-4)

# -- interruption
class Boom(Callback):
    "Raises at the third training batch, in a given event"
    order,always = 3,False
    def __init__(self, error, event): self.error = error; setattr(self, event, self.boom)
    def boom(self):
        if self.always or (getattr(self, 'training', True) and getattr(self, 'iter', 2) == 2): raise self.error

@pytest.mark.cell('Interruption', 'Ctrl-C, an error in another callback, CancelFitException, in five events: same model, hooks and head gone, next fit works')
@pytest.mark.parametrize('bn', ['separate','joint'])
@pytest.mark.parametrize('error', [KeyboardInterrupt(), RuntimeError('out of something'), CancelFitException()], ids=['ctrl-c','error','cancel'])
@pytest.mark.parametrize('event', ['before_batch','after_pred','before_step','after_epoch','before_validate'])
def test_learner_is_usable_after_an_interruption(make_learn, error, event, bn):
    learn = make_learn(cbs=SESEMI(bn=bn))
    model = learn.model
    try: fit(learn, cbs=Boom(error, event))
    except (KeyboardInterrupt,RuntimeError): pass
    assert learn.model is model and traces(learn) == CLEAN
    learn.validate()
    assert len(fit(learn).recorder.values[0]) == 6 and traces(learn) == CLEAN

@pytest.mark.cell('Interruption', 'an error before training begins')
@pytest.mark.parametrize('event', ['before_fit','before_epoch'])
def test_interruption_before_training(make_learn, event):
    class Late(Boom): order,always = 80,True
    learn = make_learn(cbs=SESEMI())
    with pytest.raises(RuntimeError): fit(learn, cbs=Late(RuntimeError('early'), event))
    assert len(learn.validate()) == 2 and traces(learn)[:3] == CLEAN[:3]
    assert learn.recorder.metric_names.count('rot_loss') <= 1 and len(fit(learn).recorder.values[0]) == 6
    assert traces(learn) == CLEAN

# -- what cannot be meant
def test_one_sesemi_in_a_fit(make_learn):
    learn = make_learn(cbs=SESEMI())
    with pytest.raises(InputError, match='more than one SESEMI'): fit(learn, cbs=SESEMI())
    fit(learn)

def test_settings_of_images_with_a_loader(make_dls):
    for kw in (dict(bs=4), dict(num_workers=0)):
        with pytest.raises(InputError, match='a DataLoader as unlabeled= has its own'): SESEMI(make_dls().train, **kw)

# -- again and again
@pytest.mark.cell('Schedules and fits', 'several fits in a row; removed, added again, replaced')
def test_remove_add_and_replace(make_learn):
    learn = fit(make_learn(cbs=SESEMI(seed=1)))
    head = learn.sesemi.rot_head
    fit(learn)
    assert learn.sesemi.rot_head is head, "the next fit goes on with the same head"
    cb = learn.sesemi
    learn.remove_cb(cb)
    assert 'rot_loss' not in fit(learn).recorder.metric_names
    learn.add_cb(cb)
    assert 'rot_loss' in fit(learn).recorder.metric_names
    learn.remove_cb(cb); learn.add_cb(SESEMI(weight=2))
    assert fit(learn).recorder.metric_names.count('rot_loss') == 1

@pytest.mark.cell('Schedules and fits', 'new data of another size in a later fit')
def test_new_data_of_another_size_in_a_later_fit(make_learn, make_dls):
    learn = fit(make_learn(cbs=SESEMI()))
    learn.dls = make_dls(size=40, bs=12)
    fit(learn)
    assert learn.sesemi._stream.dl.bs == 3 and learn.sesemi._stream.batch().shape[-1] == 40

def test_transforms_changed_in_place(make_learn):
    learn = fit(make_learn(cbs=SESEMI()))
    head = learn.sesemi.rot_head
    for dl in learn.dls.loaders:
        for t in dl.after_item.fs:
            if isinstance(t, RandomResizedCrop): t.size = (48,48)
    fit(learn)
    assert learn.sesemi.rot_head is head and learn.sesemi._stream.batch().shape[-1] == 48
    learn.dls.train.after_batch.add(Marked())
    fit(learn)
    assert (learn.sesemi._stream.batch() == 7).all()

class Marked(Transform):
    order = 200
    def encodes(self, x:TensorImage): return torch.full_like(x, 7)

def test_fine_tune_without_a_frozen_part(make_learn):
    learn = make_learn(cbs=SESEMI())
    learn.fine_tune(1, freeze_epochs=0)
    assert 'rot_loss' in learn.recorder.metric_names and len(learn.recorder.values) == 1

def test_counts_images(make_learn):
    learn = fit(make_learn(cbs=SESEMI(bs=3)), 2)
    assert learn.sesemi.n_images == 2*len(learn.dls.train)*12

def test_transductive_is_named(make_learn):
    learn = fit(make_learn(cbs=SESEMI('valid')))
    assert learn.sesemi.transductive and len(learn.sesemi._stream.dl.dataset) == 60
    assert not SESEMI().transductive

@pytest.mark.cell('Learner', 'loader workers: the same batches each time')
@pytest.mark.parametrize('workers', [1])
def test_worker_processes_give_the_same_batches_each_time(make_learn, workers):
    a,b = (fit(make_learn(cbs=SESEMI(num_workers=workers, seed=2)), 2) for _ in 'ab')
    assert a.recorder.values == b.recorder.values

# -- what does not fit
def test_mistakes_are_told_before_the_first_step(make_learn, make_dls, tmp_path):
    (tmp_path/'empty').mkdir()
    for kwargs,words in [(dict(unlabeled=tmp_path/'empty'), 'no images below'), (dict(unlabeled=tmp_path/'gone'), 'is not a folder'),
                         (dict(bs=1000), 'do not fill one batch'), (dict(features='nowhere'), "no module 'nowhere'")]:
        learn = make_learn(cbs=SESEMI(**kwargs))
        with pytest.raises(InputError, match=words): fit(learn)
        assert traces(learn) == CLEAN
    for kwargs in (dict(bn='both'), dict(weight=-1), dict(bs=0)):
        with pytest.raises(InputError): SESEMI(**kwargs)

def test_images_that_are_not_square(image_folder, tmp_path):
    from fastai.vision.all import CategoryBlock, DataBlock, ImageBlock, ResizeMethod, parent_label
    dls = DataBlock((ImageBlock,CategoryBlock), get_items=get_image_files, get_y=parent_label,
                    item_tfms=Resize((32,40), ResizeMethod.Squish)).dataloaders(image_folder, bs=8, num_workers=0)
    learn = Learner(dls, tiny_model(), path=tmp_path, cbs=SESEMI())
    with pytest.raises(InputError, match='square'), learn.no_bar(): fit(learn)

@pytest.mark.cell('Numbers', 'fewer images than one batch: refused before the first step')
def test_fewer_training_images_than_a_batch(make_dls, make_learn):
    learn = make_learn(dls=make_dls(bs=8))
    learn.dls = make_dls(bs=50)
    learn.add_cb(SESEMI(bs=2))
    with pytest.raises(InputError, match='do not fill one batch of 50'): fit(learn)

# -- on a GPU
@pytest.mark.cell('Precision', 'fp32, to_fp16, to_bf16 on a GPU')
@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('bn', ['separate','joint'])
@pytest.mark.parametrize('precision', ['to_fp32','to_fp16','to_bf16'])
def test_cuda(make_learn, make_dls, precision, bn):
    dls = make_dls()
    dls.cuda()
    learn = make_learn(dls=dls, model=tiny_model().cuda(), cbs=SESEMI(bn=bn))
    getattr(learn, precision)()
    assert np.isfinite(fit(learn, 2).recorder.values[-1]).all()

def test_loaders_of_other_classes_give_what_they_gave():
    "A loader with weights keeps them as source of unlabeled images"
    ds = [(torch.full((3,8,8), i/16),TensorCategory(0)) for i in range(16)]
    dls = DataLoaders(DataLoader(ds, bs=4), DataLoader(ds, bs=4))
    weighted = WeightedDL(ds, bs=4, wgts=[1.]*4+[0.]*12, shuffle=True)
    stream = UnlabeledStream(dls, weighted)
    assert {round(16*o) for _ in range(6) for o in stream.batch()[:,0,0,0].tolist()} <= {0,1,2,3}

def test_own_random_states_leave_settings_of_the_process_alone():
    own,was = OwnRandom(0),torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = not was
    try:
        with own(): assert torch.backends.cudnn.deterministic != was
        assert torch.backends.cudnn.deterministic != was
    finally: torch.backends.cudnn.deterministic = was

@pytest.mark.parametrize('kwargs', [dict(bn='joint'), dict(unlabeled='batch')])
def test_a_batch_that_is_split_between_gpus_is_no_place_for_a_shared_pass(make_learn, kwargs):
    learn = make_learn(cbs=SESEMI(**kwargs))
    learn.model = nn.DataParallel(learn.model)
    learn.model.device_ids = [0,1] # as on two GPUs
    with pytest.raises(InputError, match='DataParallel splits a batch'): fit(learn)

@pytest.mark.parametrize('n,says', [(lambda epoch: 2.5,'whole number'), (lambda epoch: 0,'at least one step')])
def test_steps_of_an_epoch_that_are_none(make_learn, n, says):
    with pytest.raises(InputError, match=says): fit(make_learn(cbs=StepsPerEpoch(n)))

def test_steps_per_epoch_of_a_loader_of_pytorch():
    loader = torch.utils.data.DataLoader([(torch.rand(3,32,32),torch.tensor(i%3)) for i in range(16)], batch_size=8)
    with pytest.raises(InputError, match='need a fastai DataLoader'):
        fit(Learner(DataLoaders(loader, loader), tiny_model(), loss_func=CrossEntropyLossFlat(), cbs=StepsPerEpoch(3)))
