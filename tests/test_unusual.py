"Learners and data that few have: loader processes that are not forked, subclasses with methods of their own, several targets, columns of other names"
import gc, multiprocessing, shutil, subprocess, sys, weakref
from copy import copy
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from fastai.vision.all import (BaseLoss, Callback, CancelFitException, CancelEpochException, CategoryBlock, ColReader, CrossEntropyLossFlat,
    DataBlock, DataLoaders, FocalLossFlat, ImageBlock, IndexSplitter, Learner, PILImage, RandomSplitter, RandomResizedCrop, Resize,
    SkipItemException, Transform,
                               accuracy, get_image_files, get_model, noop, parent_label)
from sesemi_fastai.callback import SESEMI
from sesemi_fastai.checkpoint import Checkpoint, FiniteLoss
from sesemi_fastai.core import InputError
from sesemi_fastai.data import table_dls
from sesemi_fastai.labels import LabelReport
from sesemi_fastai.memory import Memorisation
from sesemi_fastai.predictions import Predictions
from sesemi_fastai.losses import ELR, GCE
from sesemi_fastai.robust import RobustLoss
from sesemi_fastai.steps import StepsPerEpoch
from sesemi_fastai.stream import OwnRandom, unlabeled_items
from conftest import tiny_model
from test_callback import CLEAN, fit, traces

def table(folder, col='path'):
    "The files in the column `col`, from `folder` on, every fifth for validation"
    files = sorted(get_image_files(folder))
    return pd.DataFrame({col:[str(o.relative_to(folder)) for o in files], 'label':[o.parent.name for o in files],
                         'is_valid':[i%5 == 0 for i in range(len(files))]})

forked_not = """
import sys, warnings; warnings.filterwarnings('ignore')
if __name__ == '__main__':
    import multiprocessing
    multiprocessing.set_start_method('forkserver')
    sys.path.insert(0, {tests!r})
    from test_unusual import *
    folder = Path({folder!r})
    dls = table_dls(table(folder), folder, 32, bs=8, store={store!r}, num_workers=1, seed=0)
    if {store!r}:
        for o in get_image_files(folder): o.unlink()
    class Late(Callback):
        order = 99
        def before_batch(self):
            if self.training and {store!r}: assert self.dl._late()
    learn = Learner(dls, tiny_model(), metrics=accuracy, cbs=[Memorisation(), LabelReport(), SESEMI(num_workers=0), StepsPerEpoch(6), Late()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    print(type(dls.train).__name__, len(learn.label_report.frame()))
"""

@pytest.mark.cell('Learner', 'loader processes that are not forked (forkserver, spawn), over files and over a store')
@pytest.mark.parametrize('store', [None,'store'])
def test_loader_processes_that_are_not_forked(image_folder, tmp_path, store):
    script,folder = tmp_path/'script.py',tmp_path/'images'
    shutil.copytree(image_folder, folder)
    script.write_text(forked_not.format(tests=str(Path(__file__).parent), folder=str(folder), store=store and str(tmp_path/store)))
    res = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path)
    assert res.returncode == 0 and res.stdout.split() == ['StoreDL' if store else 'TfmdDL', '48'], res.stderr[-2000:]

class OwnEvents(Learner):
    def _with_events(self, f, event_type, ex, final=noop):
        try:
            self(f'before_{event_type}')
            f()
        except ex: self(f'after_cancel_{event_type}')
        self(f'after_{event_type}')
        final()

class OwnEpochs(Learner):
    def _do_fit(self):
        for self.epoch in range(self.n_epoch): self._with_events(self._do_epoch, 'epoch', CancelEpochException)

class Evaluates(Callback):
    "In the middle of a fit"
    order = -50
    def before_epoch(self):
        if not self.learn.lock.locked(): self.learn.validate()

skipping = """
import sys, warnings; warnings.filterwarnings('ignore')
if __name__ == '__main__':
    import multiprocessing
    multiprocessing.set_start_method('forkserver')
    sys.path.insert(0, {tests!r})
    from test_unusual import *
    folder = Path({folder!r})
    dls = from_files(folder, item_tfms=[Skips(), Resize(32)], num_workers=1)
    learn = Learner(dls, tiny_model(), metrics=accuracy, cbs=Memorisation())
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
"""

class Skips(Transform):
    "An image that is left out"
    order = -5
    def encodes(self, x:PILImage):
        if x.getpixel((0,0)) == (1,2,3): raise SkipItemException
        return x

def from_files(folder, **kwargs):
    workers = kwargs.pop('num_workers', 0)
    return DataBlock((ImageBlock,CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=RandomSplitter(.2, seed=0),
                     **kwargs).dataloaders(folder, bs=8, num_workers=workers)

def test_a_skipped_item_is_told_in_processes_that_are_not_forked(image_folder, tmp_path):
    script,folder = tmp_path/'script.py',tmp_path/'images'
    shutil.copytree(image_folder, folder)
    im = Image.open(train := from_files(folder, item_tfms=Resize(32)).train_ds.items[3])
    im.putpixel((0,0), (1,2,3))
    im.save(train)
    script.write_text(skipping.format(tests=str(Path(__file__).parent), folder=str(folder)))
    res = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path)
    assert res.returncode and 'of the training set was skipped' in res.stderr, res.stderr[-2000:]

@pytest.mark.cell('Learner', 'subclasses of Learner with fit loops or events of their own, and events that a tracer has wrapped')
@pytest.mark.parametrize('cls,cbs', [(OwnEvents,[]), (OwnEpochs,[Evaluates]), ('wrapped',[Evaluates])], ids=['events','epochs','wrapped'])
def test_a_learner_with_its_own_fit(make_dls, tmp_path, monkeypatch, cls, cbs):
    if cls == 'wrapped':
        events,cls = Learner._with_events,Learner
        monkeypatch.setattr(Learner, '_with_events', lambda *args, **kwargs: events(*args, **kwargs))
    learn = cls(make_dls(), tiny_model(), metrics=accuracy, path=tmp_path, cbs=[SESEMI(), Memorisation(), RobustLoss(ELR()), *[o() for o in cbs]])
    fit(learn, 2)
    assert learn.sesemi.n_images == 2*6*8 and learn.sesemi.rot_head is not None
    assert {'rot_loss','as_given'} <= {*learn.recorder.metric_names} and len(learn.memorisation.history) == 2
    assert traces(learn) == CLEAN

def two_targets(image_folder):
    block = DataBlock((ImageBlock,CategoryBlock,CategoryBlock), n_inp=1, get_items=get_image_files, get_y=[lambda o: o.name[0],parent_label],
                      splitter=RandomSplitter(.2, seed=0), item_tfms=RandomResizedCrop(32))
    return block.dataloaders(image_folder, bs=8, num_workers=0)

@pytest.mark.cell('Robust losses', 'several targets, and networks with several outputs: SESEMI trains, callbacks that need one class an image say so')
@pytest.mark.parametrize('cb', [LabelReport, Memorisation, Predictions, lambda: RobustLoss(ELR()), lambda: RobustLoss(GCE())])
def test_what_needs_one_class_an_image(make_learn, make_dls, image_folder, cb):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny_model()
        def forward(self, x): return self.net(x),x
    first = lambda p,*y: F.cross_entropy(p, y[0])
    dls = two_targets(image_folder)
    fit(make_learn(dls=dls, model=tiny_model(6), loss_func=first, metrics=None, cbs=SESEMI()))
    with pytest.raises(InputError, match='2 targets'): fit(make_learn(dls=dls, model=tiny_model(6), loss_func=first, metrics=None, cbs=cb()))
    with pytest.raises(InputError, match='network gives a tuple'):
        fit(make_learn(model=Two(), loss_func=lambda p,y: F.cross_entropy(p[0], y), metrics=None, cbs=cb()))

@pytest.mark.cell('Bad tables', 'images in a column of another name beside an unrelated column path: names, and whether validation images are turned')
def test_a_column_path_that_is_not_read(make_learn, image_folder):
    df = table(image_folder, 'name').assign(path='somewhere')
    dls = DataBlock((ImageBlock,CategoryBlock), get_x=ColReader('name', pref=f'{image_folder}/'), get_y=ColReader('label'),
                    splitter=IndexSplitter(np.flatnonzero(df.is_valid)), item_tfms=Resize(32)).dataloaders(df, path=image_folder, bs=8, num_workers=0)
    learn = fit(make_learn(dls=dls, cbs=[LabelReport(), Predictions(), SESEMI([image_folder/o for o in df.name])]))
    assert {*learn.label_report.frame().path} == {*df.name[~df.is_valid]} and {*learn.predictions.frame().path} == {*df.name[df.is_valid]}
    assert learn.sesemi.transductive
    learn = fit(make_learn(dls=dls, cbs=SESEMI([image_folder/o for o in df.name[~df.is_valid]])))
    assert not learn.sesemi.transductive

@pytest.mark.parametrize('loaders', ['fastai','torch'])
def test_a_shuffled_validation_loader_is_refused(make_learn, make_dls, loaders):
    dls = make_dls() if loaders == 'fastai' else torch_loaders()
    if loaders == 'fastai': dls.valid = dls.valid.new(shuffle=True)
    else: dls = DataLoaders(dls.train, dls.train)
    with pytest.raises(InputError, match='is shuffled'): fit(make_learn(dls=dls, loss_func=CrossEntropyLossFlat(), cbs=Predictions()))

def test_labels_that_are_changed_in_place(image_folder, tmp_path):
    "A stored loader reads them anew in the next pass"
    df = table(image_folder)
    dls = table_dls(df, image_folder, 32, bs=8, store=tmp_path/'store', num_workers=0, seed=0)
    def labels(): return torch.cat([y for _,y in dls.train]).bincount(minlength=3).tolist()
    assert labels() == labels() == [16]*3
    known = dls.train._known
    labels()
    assert dls.train._known is known # as nothing has changed
    dls.train_ds.tls[1].items['label'] = 'class0'
    assert labels() == [48,0,0]

def test_a_metric_with_the_name_of_a_column_is_refused(make_learn):
    def changed(inp, targ): return torch.tensor(0.)
    learn = make_learn(metrics=[accuracy,changed], cbs=Memorisation())
    with pytest.raises(InputError, match='a metric is called changed, as a column of Memorisation'): fit(learn)
    assert [o.name for o in learn.metrics] == ['accuracy','changed']

@pytest.mark.cell('Robust losses', 'rotations alone in a part of an epoch: labels count, and are remembered, from the first step that learns them')
def test_rotations_alone_for_half_an_epoch(make_learn):
    class Steps(Callback):
        order = 90
        def before_fit(self): self.seen = []
        def after_loss(self):
            if self.training: self.seen.append((self.learn.sesemi.rotations_alone, type(self.learn.loss_func).__name__, loss.passes, loss.targets is not None))
    learn = fit(make_learn(cbs=[SESEMI(rot_only=.5), RobustLoss(loss := ELR()), Steps()]), 2)
    assert [o[0] for o in learn.steps.seen] == [True]*3+[False]*9 and {o[1] for o in learn.steps.seen} == {'ELR'}
    assert all(o[2] == 0 for o in learn.steps.seen[:4]) and loss.passes == pytest.approx(9*8/48)
    assert [o[3] for o in learn.steps.seen] == [False]*3+[True]*9 and (loss.targets.sum(1) > 0).sum() == 48

def test_a_fit_that_ends_among_rotations_leaves_the_loss_as_it_was(make_learn):
    class Ends(Callback):
        def after_batch(self): raise CancelFitException
    fit(make_learn(cbs=[SESEMI(rot_only=1), RobustLoss(loss := ELR()), Ends()]), 2)
    assert loss.labels_count and not loss.ready

def test_random_numbers_of_torch_alone():
    own,same = OwnRandom(3),OwnRandom(3)
    torch.manual_seed(0)
    outside = torch.rand(4)
    torch.manual_seed(0)
    with own.of_torch(): a = torch.rand(2)
    with own.of_torch(): b = torch.rand(2)
    assert torch.equal(torch.rand(4), outside)
    with same(): assert torch.equal(torch.rand(2), a)
    with same(): assert torch.equal(torch.rand(2), b)
    assert all(torch.equal(own.states[k], same.states[k]) for k in ['torch_state'])

def test_a_copy_remembers_nothing_for_another_network(make_learn):
    cb = RobustLoss(ELR())
    learn = make_learn()
    with learn.no_logging(): learn.fit(1, cbs=cb)
    del learn
    gc.collect()
    for again in (copy(cb),cb):
        fit(make_learn(cbs=again))
        assert again.loss_func_of_training.passes == pytest.approx(1)

def test_a_table_that_a_function_reads(make_learn, image_folder):
    "Its column `path` names the images, whatever comes before it"
    df = table(image_folder).assign(id=range(60))[['id','path','label','is_valid']]
    dls = DataBlock((ImageBlock,CategoryBlock), get_x=lambda r: image_folder/r.path, get_y=ColReader('label'),
                    splitter=IndexSplitter(np.flatnonzero(df.is_valid)), item_tfms=Resize(32)).dataloaders(df, path=image_folder, bs=8, num_workers=0)
    dls.unlabeled,dls.not_rotated = [image_folder/df.path[0]],{str(image_folder/df.path[1])}
    assert len(unlabeled_items(dls)) == 48-1+1 and str(unlabeled_items(dls)[0]) == str(image_folder/df.path[2])
    learn = fit(make_learn(dls=dls, cbs=[LabelReport(), Predictions(), SESEMI('valid')]))
    assert {*learn.label_report.frame().path} == {*df.path[~df.is_valid]} and learn.sesemi.transductive
    assert fit(make_learn(cbs=SESEMI(dls.valid))).sesemi.transductive # the labelled side has files, some of them those of the table

class Weighted(nn.Module):
    "A loss with weights that have to be where the logits are"
    moved = 0
    def __init__(self):
        super().__init__()
        self.register_buffer('w', torch.ones(3))
    def _apply(self, *args, **kwargs):
        Weighted.moved += 1
        return super()._apply(*args, **kwargs)
    def forward(self, p, y, reduction='mean'): return F.cross_entropy(p, y, weight=self.w, reduction=reduction)

def test_a_module_as_loss_comes_to_the_device(make_learn):
    for loss in (Weighted(),BaseLoss(Weighted)):
        Weighted.moved = 0
        fit(make_learn(cbs=RobustLoss(loss)))
        assert Weighted.moved

def test_a_loss_in_a_variable_holds_no_network(make_learn):
    loss = ELR()
    learn = fit(make_learn(cbs=RobustLoss(loss)))
    before,model = loss.targets.clone(),weakref.ref(get_model(learn.model))
    fit(learn)
    assert loss.passes == 2 and not torch.equal(loss.targets, before) # the same Learner goes on
    del learn
    gc.collect()
    assert model() is None

@pytest.mark.parametrize('own,lost', [(CrossEntropyLossFlat(ignore_index=2),'ignore_index'), (CrossEntropyLossFlat(reduction='sum'),'sum over the batch'),
    (FocalLossFlat(),'focal gamma')])
def test_more_that_the_own_loss_had_is_told(make_learn, capsys, own, lost):
    fit(make_learn(loss_func=own, cbs=RobustLoss(GCE())))
    assert f'does without the {lost} of the Learner' in capsys.readouterr().err

class Images(torch.utils.data.Dataset):
    def __len__(self): return 48
    def __getitem__(self, i): return torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(i)),i%3

def torch_loaders(own=False):
    return DataLoaders(*[torch.utils.data.DataLoader(Images(), batch_size=8, shuffle=train, drop_last=train,
        generator=torch.Generator().manual_seed(1) if own else None) for train in (True,False)])

@pytest.mark.cell('Keeping', "PyTorch's own loaders: a fit goes on from a checkpoint bit for bit; the labelled batch itself is turned")
@pytest.mark.parametrize('own', [False,True])
def test_loaders_of_pytorch(make_learn, tmp_path, own):
    class Stops(Callback):
        def after_epoch(self):
            if self.epoch == 1: raise KeyboardInterrupt
    def learner(*cbs): return make_learn(dls=torch_loaders(own), loss_func=CrossEntropyLossFlat(), cbs=[SESEMI('batch'), *cbs])
    whole = fit(learner(), 3)
    with pytest.raises(KeyboardInterrupt): fit(learner(Checkpoint(tmp_path/'c'), Stops()), 3)
    assert all(torch.equal(a, b) for a,b in zip(fit(learner(Checkpoint(tmp_path/'c', resume=True)), 3).model.parameters(), whole.model.parameters()))

def test_the_labelled_batch_needs_no_other_images(make_learn):
    learn = fit(make_learn(cbs=SESEMI('batch', bs=1000)))
    assert learn.sesemi.rot_head is not None

def test_the_stream_ends_where_validation_fails(make_learn):
    class Boom(Callback):
        def after_pred(self):
            if not self.training: raise KeyboardInterrupt
    learn = make_learn(cbs=[SESEMI(num_workers=1), Boom()])
    with pytest.raises(KeyboardInterrupt): fit(learn)
    gc.collect()
    assert not multiprocessing.active_children() and traces(learn) == CLEAN

@pytest.mark.parametrize('bn', ['separate','joint'])
def test_unlabeled_images_of_another_size(make_learn, make_dls, bn):
    learn = make_learn(cbs=SESEMI(make_dls(size=24).train, bn=bn))
    if bn == 'separate': fit(learn)
    else:
        with pytest.raises(InputError, match=r"unlabeled images of \[3, 24, 24\] do not fit labelled ones of \[3, 32, 32\]"): fit(learn)

class Cast(Callback):
    order = -9
    def before_batch(self): self.learn.xb = (self.xb[0].to(next(self.model.parameters()).dtype),)
    def after_pred(self): self.learn.pred = self.pred.float() # fastai's recorder wants that

@pytest.mark.parametrize('bn', ['separate','joint'])
@pytest.mark.parametrize('dtype', [torch.bfloat16,torch.float64])
def test_a_network_of_other_numbers(make_learn, bn, dtype):
    "Without autocast; the unlabeled images and the rotation head follow the network"
    learn = fit(make_learn(model=tiny_model().to(dtype), cbs=[SESEMI(bn=bn, size=None if bn == 'joint' else 24), Cast()]))
    assert {o.dtype for o in learn.sesemi.rot_head.parameters()} == {dtype}

def test_settings_that_are_no_numbers(make_learn):
    with pytest.raises(InputError, match="every='a'"): FiniteLoss(every='a')
    with pytest.raises(InputError, match='every must be at least 1'): FiniteLoss(every=0)
    learn = make_learn(lr=slice(1e-3, 1e-2))
    with pytest.raises(InputError, match='one rate for all layers'): learn.fit_poly(1)
    learn = make_learn(lr=1.)
    with learn.no_logging(): learn.fit_poly(1, 0.)
    assert {*learn.recorder.lrs} == {0.}
