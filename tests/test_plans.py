"Plans made without an object per image, and the fast path staying on"
import copy, pickle, random
import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import (NEAREST, Path, Callback, CategoryBlock, ColReader, ColSplitter, CropPad, DataBlock, Datasets, FlipItem, ImageBlock,
                               Learner, PILImage, RandomCrop, RandomResizedCrop, Resize, TensorCategory, TensorImage, TfmdDL, TfmdLists, ToTensor,
                               Transform, nn, fastuple, load_learner, set_seed)
from PIL import ImageFile
from sesemi_fastai.all import (SESEMI, Checkpoint, GammaCorrection, ImageStore, LabelReport, Memorisation, Predictions, Prefetch, StoreDL,
                               StoredImageBlock, UnlabeledStream, item_tfms, own_dls, robust_cbs, scan_images)
from sesemi_fastai.batches import StoredImage
from sesemi_fastai.plans import LazyImage, Planned, planner
from test_resume import Crash
from test_store import photos

chains = dict(fastai=item_tfms('fastai', 32), sesemi=item_tfms('sesemi', 32), always=[FlipItem(1.), RandomResizedCrop((24,32))],
              tall=[RandomResizedCrop(32, min_scale=.9, ratio=(3,4))],
    training_alone=[RandomResizedCrop(32, split_idx=0), Resize(32, split_idx=1)], other_side=[RandomResizedCrop(32, split_idx=1),
    Resize((20,32), split_idx=0)], dark=[GammaCorrection(low=0., high=.1, order=0), RandomResizedCrop(32)],
    crop=[Resize((32,24))], squish=[Resize(32, method='squish'), FlipItem()], padded=[Resize(32, method='pad')],
    nearest=[Resize(32, resamples=(NEAREST,NEAREST))], moved=[Resize(40), RandomCrop((32,24)), GammaCorrection()],
    middle=[Resize(41), CropPad((32,24), order=2), FlipItem()],
    validation_alone=[Resize(40, split_idx=1), RandomCrop(32, split_idx=1), RandomResizedCrop(32, split_idx=0)], border=[Resize(24), CropPad(32, order=2)],
    too_small=[CropPad(45), Resize(32)], twice=[Resize(33), RandomResizedCrop(32, min_scale=.9, order=2)],
    one_pixel=[Resize(1), RandomResizedCrop(32, order=2)])
need_images = 'one_pixel','dark','padded','nearest','border','too_small','twice'

@pytest.mark.parametrize('device', [None,'cpu'])
@pytest.mark.parametrize('name', chains)
def test_plans_without_an_image_are_those_of_the_images(photos, tmp_path, name, device, monkeypatch):
    "Same numbers drawn, same batches, in training and validation, whatever else draws numbers"
    files = sorted(photos.rglob('*.png'))
    store = ImageStore(files, tmp_path/'store').to(device)
    df = pd.DataFrame(dict(path=[str(o) for o in files], label=[o.parent.name for o in files], is_valid=[i%3 == 0 for i in range(len(files))]))
    def batches(planner):
        monkeypatch.setattr('sesemi_fastai.batches.planner', planner)
        set_seed(0)
        dls = DataBlock((StoredImageBlock(store),CategoryBlock), get_x=ColReader('path'), get_y=ColReader('label'), splitter=ColSplitter('is_valid'),
                        item_tfms=chains[name]).dataloaders(df, bs=8, num_workers=0)
        return [*dls.train, *dls.valid, *dls.train],[random.random(), np.random.rand(), torch.rand(1).item()],dls
    (a,drawn_a,_),(b,drawn_b,dls) = batches(lambda fs, split_idx: None),batches(planner)
    assert drawn_a == drawn_b and {type(t) for x in b for t in x} == {TensorImage,TensorCategory}
    for (xa,ya),(xb,yb) in zip(a, b, strict=True): assert torch.equal(ya, yb) and torch.equal(xa, xb)
    assert (dls.train._planner() is None) == (name in need_images)

@pytest.mark.parametrize('name', ['auto','smallloss','none'])
def test_no_image_is_made_alone_whatever_callbacks_look_on(photos, tmp_path, name, monkeypatch):
    "Callbacks that note the order of the items must not turn the fast path off"
    made = []
    monkeypatch.setattr('sesemi_fastai.plans.made_by_pillow', lambda px, plan: made.append(plan))
    dls = own_dls(photos, size=32, bs=8, num_workers=0, store=tmp_path/'store')
    learn = Learner(dls, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)), path=tmp_path,
                    cbs=[*robust_cbs(name), SESEMI(features='0'), Memorisation(), LabelReport(), Predictions()])
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    assert not made and dls.train._known[1].rows.min() >= 0

def test_known_and_new_items_make_one_batch(photos, tmp_path):
    "Items that are files of the store, and one that is not"
    files = sorted(photos.rglob('*.png'))
    store = ImageStore(files[1:], tmp_path/'store')
    df = pd.DataFrame(dict(path=[str(o) for o in files], label=[o.parent.name for o in files]))
    def batches(block):
        set_seed(0)
        dls = DataBlock((block,CategoryBlock), get_x=ColReader('path'), get_y=ColReader('label'), item_tfms=item_tfms('fastai', 32)).dataloaders(df,
            bs=8, num_workers=0)
        return [*dls.train, *dls.train]
    for (xa,ya),(xb,yb) in zip(batches(ImageBlock), batches(StoredImageBlock(store)), strict=True): assert torch.equal(ya, yb) and (xa-xb).abs().max() < .01

class OnCPU(Prefetch): _pays = True

@pytest.mark.parametrize('name', ['auto','smallloss','fixmatch'])
def test_batches_made_in_the_backward_pass_are_the_same(photos, tmp_path, name):
    def weights(*cbs, **kwargs):
        set_seed(0)
        dls = own_dls(photos, size=32, bs=8, num_workers=0, store=tmp_path/'store', seed=0)
        set_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(.2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
        learn = Learner(dls, net, path=tmp_path,
                        cbs=[*robust_cbs(name), SESEMI(bs=4, features='3', **kwargs), Memorisation(), LabelReport(), Predictions(), *cbs])
        with learn.no_bar(), learn.no_logging(): learn.fit(3)
        assert '_backward' not in vars(learn) and learn.dl is None
        return torch.cat([p.detach().flatten() for p in net.parameters()])
    for kwargs in (dict(), dict(every=2, turns='one')): assert torch.equal(weights(**kwargs), weights(OnCPU(), **kwargs))

@pytest.mark.parametrize('every', [1,2,3])
def test_a_run_with_batches_made_ahead_goes_on_as_it_was(photos, tmp_path, every):
    def go(folder, resume=False, cbs=()):
        set_seed(0)
        dls = own_dls(photos, size=32, bs=8, num_workers=0, store=tmp_path/'store', seed=0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
        learn = Learner(dls, net, path=tmp_path, cbs=[*robust_cbs('auto'), SESEMI(bs=4, features='2', every=every), OnCPU(), Checkpoint(folder, resume), *cbs])
        with learn.no_bar(), learn.no_logging(): learn.fit(4)
        return torch.cat([p.detach().flatten() for p in net.parameters()])
    whole = go(tmp_path/'a')
    with pytest.raises(KeyboardInterrupt): go(tmp_path/'b', cbs=[Crash()])
    assert torch.equal(whole, go(tmp_path/'b', resume=True))

def test_an_error_in_the_next_batch_is_told_and_leaves_nothing(photos, tmp_path):
    dls = own_dls(photos, size=32, bs=8, num_workers=0, store=tmp_path/'store', seed=0)
    learn = Learner(dls, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)), path=tmp_path, cbs=[OnCPU()])
    class Breaks(Transform):
        n = 0
        def encodes(self, o:TensorImage):
            self.n += 1
            if self.n == 2: raise OSError('the disk is gone')
            return o
    dls.train.after_batch.add(Breaks())
    with learn.no_bar(), learn.no_logging(), pytest.raises(OSError, match='disk is gone'): learn.fit(1)
    assert '_backward' not in vars(learn)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)

@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_batches_made_in_the_backward_pass_of_a_gpu(photos, tmp_path):
    def weights(*cbs):
        set_seed(0, reproducible=True)
        dls = own_dls(photos, size=32, bs=8, num_workers=0, store=tmp_path/'store', seed=0, device=torch.device('cuda'))
        dls.store.to('cuda')
        set_seed(0, reproducible=True)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(.2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
        learn = Learner(dls, net, path=tmp_path, cbs=[*robust_cbs('auto'), SESEMI(bs=4, features='3'), *cbs])
        with learn.no_bar(), learn.no_logging(): learn.fit(3)
        return torch.cat([p.detach().flatten() for p in net.parameters()])
    assert torch.allclose(weights(), weights(Prefetch()), atol=1e-4)

def test_a_scan_reads_a_file_once_until_it_changes(photos, monkeypatch):
    from sesemi_fastai import scan
    read,fault = [],scan.image_fault
    monkeypatch.setattr(scan, 'image_fault', lambda f: read.append(f) or fault(f))
    files = sorted(photos.rglob('*.png'))
    for _ in range(2): assert not len(scan.scan_images(files))
    assert len(read) == len(files)
    files[3].write_bytes(files[3].read_bytes()[:200])
    assert list(scan.scan_images(files).path) == [str(files[3])] and len(read) == len(files)+1
    files[3].unlink()
    assert list(scan.scan_images(files).kind) == ['bad']

def table_loaders(photos, tmp_path, tfms, splits=None):
    files = sorted(photos.rglob('*.png'))
    df = pd.DataFrame(dict(path=[str(o) for o in files], label=[o.parent.name for o in files], is_valid=[i%3 == 0 for i in range(len(files))]))
    set_seed(0)
    return DataBlock((StoredImageBlock(ImageStore(files, tmp_path/'store')),CategoryBlock), get_x=ColReader('path'), get_y=ColReader('label'),
                     splitter=splits or ColSplitter('is_valid'), item_tfms=tfms).dataloaders(df, bs=8, num_workers=0)

def test_a_stream_goes_on_with_what_was_made_ahead(photos, tmp_path):
    def stream(): return UnlabeledStream(table_loaders(photos, tmp_path, item_tfms('fastai', 32)), bs=4, seed=3)
    a = stream()
    for _ in range(2): a.batch()
    a.peek()
    state,b = pickle.loads(pickle.dumps(a.state_dict())),stream()
    b.load_state_dict(state)
    for _ in range(9): assert torch.equal(a.batch(), b.batch())

def test_a_third_split_is_treated_as_validation(photos, tmp_path):
    dls = table_loaders(photos, tmp_path, item_tfms('fastai', 32), splits=lambda o: (list(range(0,48,3)),list(range(1,48,3)),list(range(2,48,3))))
    for (a,_),(b,_) in zip(dls[2], dls[2], strict=True): assert torch.equal(a, b)

class Swapped(Datasets):
    def __getitem__(self, i):
        x,y = super().__getitem__(i)
        return x,type(y)(1-y)

def test_own_ways_to_make_items_are_asked(photos, tmp_path):
    dls = table_loaders(photos, tmp_path, item_tfms('fastai', 32))
    plain = [y for _,y in dls.valid]
    for y,x in zip(plain, dls.valid.new(Swapped(tls=dls.valid_ds.tls)), strict=True): assert torch.equal(1-y, x[1])
    made,new = [],dls.valid.new()
    def create_item(s): made.append(s); return dls.valid_ds[s]
    new.create_item = create_item
    for _ in new: pass
    assert len(made) == len(dls.valid_ds)
    orig,n = dls.train.do_item,[]
    def mine(s):
        x,y = orig(s)
        n.append(s)
        return x,y
    dls.train.do_item = mine
    learn = Learner(dls, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)), path=tmp_path, cbs=[Memorisation()])
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    assert len(n) == 2*32
    item = table_loaders(photos, tmp_path, item_tfms('fastai', 32)).train.do_item(0)
    assert len(item) == 2 and item[0].size == (32,32)

def test_transforms_may_change_between_passes(photos, tmp_path):
    dls = table_loaders(photos, tmp_path, [FlipItem(1.), RandomResizedCrop(32)])
    def sizes(): return [next(iter(o))[0].shape[-1] for o in (dls.train,dls.valid)]
    assert sizes() == [32,32]
    for o in dls.loaders:
        for t in o.after_item.fs:
            if isinstance(t, RandomResizedCrop): t.size = fastuple(48,48)
    assert sizes() == [48,48]

@pytest.mark.parametrize('tfms', [[RandomResizedCrop(32), GammaCorrection(.3, .31), GammaCorrection(2., 2.1)],
    [RandomResizedCrop(32), GammaCorrection(np.float32(.3), np.float32(.31))], [RandomResizedCrop(32, val_xtra=-.5)]])
def test_chains_that_no_plan_can_hold_are_those_of_the_files(photos, tmp_path, tfms):
    a = table_loaders(photos, tmp_path, tfms)
    files = DataBlock((ImageBlock,CategoryBlock), get_x=ColReader('path'), get_y=ColReader('label'), splitter=ColSplitter('is_valid'),
                      item_tfms=tfms).dataloaders(pd.concat([a.train_ds.items, a.valid_ds.items]).sort_index(), bs=8, num_workers=0)
    for stored,plain in zip(a.loaders, files.loaders, strict=True):
        stored.rng,plain.rng = random.Random(1),random.Random(1)
        set_seed(0); x = [o[0] for o in stored]
        set_seed(0); y = [o[0] for o in plain]
        for u,v in zip(x, y, strict=True): assert (u-v).abs().max() < .06

class Twice(Callback):
    "As sharpness-aware minimisation does"
    order = 1
    def after_pred(self): self.done = False
    def after_backward(self):
        if self.done: return
        self.done = True
        self.learn.loss_grad = self.learn.loss_func(self.learn.model(*self.xb), *self.yb)
        self.learn._backward()

def test_two_backward_passes_and_two_prefetches(photos, tmp_path):
    def steps(*cbs):
        dls = table_loaders(photos, tmp_path, item_tfms('fastai', 32))
        set_seed(0)
        net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
        learn = Learner(dls, net, path=tmp_path, cbs=[Memorisation(), Twice(), *cbs])
        with learn.no_bar(), learn.no_logging(): learn.fit(2)
        return len(learn.recorder.lrs),learn.memorisation.history,torch.cat([p.detach().flatten() for p in net.parameters()])
    want = steps()
    for cbs in ([OnCPU()],[OnCPU(),OnCPU()]):
        got = steps(*cbs)
        assert got[:2] == want[:2] and torch.equal(got[2], want[2])

class Exports(Callback):
    order = 99
    def after_batch(self):
        if self.training and self.iter == 1: self.learn.export('within.pkl')

def test_a_learner_with_prefetch_can_be_copied_and_exported(photos, tmp_path):
    dls = table_loaders(photos, tmp_path, item_tfms('fastai', 32))
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    learn = Learner(dls, net, loss_func=nn.CrossEntropyLoss(), path=tmp_path, cbs=[OnCPU()])
    copy.copy(Prefetch()); twin = copy.deepcopy(learn)
    with twin.no_bar(), twin.no_logging(): twin.fit(1)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=Exports())
    back = load_learner(tmp_path/'within.pkl')
    back.dls = dls
    with back.no_bar(), back.no_logging(): back.fit(1)

def test_faults_are_looked_at_again(photos):
    f = sorted(photos.rglob('*.png'))[0]
    jpg = f.with_suffix('.jpg')
    PILImage.create(f).save(jpg)
    jpg.write_bytes(jpg.read_bytes()[:-400])
    assert len(scan_images([jpg])) == 1
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try: assert not len(scan_images([jpg]))
    finally: ImageFile.LOAD_TRUNCATED_IMAGES = False
    assert len(scan_images([jpg])) == 1

def own_item(base):
    class D(base):
        def do_item(self, s):
            x,y = super().do_item(s)
            return x,type(y)(1-y)
    return D
def own_reading(base):
    class D(base):
        read = 0
        def create_item(self, s):
            self.read += 1
            x,y = super().create_item(s)
            return x,type(y)((y+self.read//7)%2)
    return D
def own_batch(base):
    class D(base):
        def create_batch(self, b):
            x,y = super().create_batch(b)
            return x,y+10
    return D
def own_way(base):
    class D(base):
        def do_batch(self, b): return super().do_batch([(x,type(y)(y+20)) for x,y in b])
    return D
def own_types(base):
    class D(base):
        def retain(self, res, b):
            x,y = super().retain(res, b)
            return x,-y
    return D

def two_passes(dl): return [y.tolist() for _ in range(2) for _,y in dl]

@pytest.mark.parametrize('own', [own_item,own_reading,own_batch,own_way,own_types])
@pytest.mark.parametrize('look', [False,True])
def test_what_a_subclass_does_is_done(photos, tmp_path, own, look):
    "Over our loader as over fastai's"
    train = table_loaders(photos, tmp_path, item_tfms('fastai', 32)).train
    def labels(base):
        dl = train.new(cls=own(base), shuffle=False)
        if look:
            do = dl.do_item
            def item(s): return do(s)
            item.looks_on = True
            dl.do_item = item
        return two_passes(dl)
    assert labels(StoreDL) == labels(TfmdDL) != two_passes(train.new(shuffle=False))

class Changing(Datasets):
    n = 0
    def __getitem__(self, i):
        Changing.n += 1
        x,y = super().__getitem__(i)
        return x,type(y)((y+Changing.n//5)%2)

def test_items_that_change_are_read_again(photos, tmp_path):
    train = table_loaders(photos, tmp_path, item_tfms('fastai', 32)).train
    def labels(cls, **kwargs):
        Changing.n = 0
        return two_passes(train.new(Changing(tls=train.dataset.tls), cls=cls, shuffle=False, **kwargs))
    assert labels(StoreDL) == labels(TfmdDL)
    def by_turns(cls):
        turns = random.Random(1)
        return two_passes(train.new(cls=cls, shuffle=False, create_item=lambda s: train.dataset[turns.randrange(32)]))
    assert by_turns(StoreDL) == by_turns(TfmdDL)
    def in_order(cls): return [y.tolist() for _,y in cls(train.dataset, bs=8, num_workers=0, indexed=False, after_item=[RandomResizedCrop(16),ToTensor()])]
    assert in_order(StoreDL) == in_order(TfmdDL) and len({tuple(o) for o in in_order(StoreDL)}) > 1
    dl = train.new(shuffle=False)
    before = two_passes(dl)
    dl.dataset.tls[1].tfms.add(Transform(lambda o: TensorCategory(1-o), order=9))
    assert two_passes(dl) == [[1-v for v in o] for o in before]

def test_pixels_and_images_alone_as_on_the_plain_path(photos, tmp_path):
    train = table_loaders(photos, tmp_path, []).train
    lazy,files = train.do_item(0)[0],[Path(train.dataset.items.iloc[i].path) for i in range(4)]
    assert isinstance(lazy, LazyImage) and lazy.load()[2,3] == lazy.getpixel((2,3))
    store = lazy.store
    alone = StoreDL(TfmdLists([photos/f for f in files], StoredImage(store)), bs=4, num_workers=0,
                    after_item=[Resize(16, method='squish'), ToTensor()]).one_batch()
    plain = TfmdDL(TfmdLists([photos/f for f in files], PILImage.create), bs=4, num_workers=0, after_item=[Resize(16, method='squish'), ToTensor()]).one_batch()
    assert (alone.float()-plain.float()).abs().max() <= 2

def test_items_may_be_asked_for_within_a_pass(photos, tmp_path):
    dl = table_loaders(photos, tmp_path, item_tfms('fastai', 32)).train
    for _ in range(2):
        for _ in dl: assert [type(o) for o in dl.do_item(0)] == [LazyImage,TensorCategory]
    plans = []
    for _ in dl:
        dl.one_batch()
        plans.append(type(dl._for_batch(0)))
    assert set(plans) == {Planned}

def changed_crop(dl): dl.after_item.fs[0].size = fastuple(24,24)
def changed_mode(dl): dl.after_item.fs[0].mode = NEAREST
def no_more_gamma(dl): dl.after_item.fs[1].p = 0.
def one_more(dl): dl.after_item.add(FlipItem(1.))
@pytest.mark.parametrize('change', [changed_crop,changed_mode,no_more_gamma,one_more])
def test_transforms_may_change_within_a_pass(photos, tmp_path, change):
    train = table_loaders(photos, tmp_path, [RandomResizedCrop(16), GammaCorrection(3, 3.1)]).train
    def batches(cls):
        dl,res = train.new(cls=cls, after_item=copy.deepcopy(train.after_item), shuffle=False),[]
        for _ in dl: pass # every item is known
        set_seed(0)
        for i,(x,_) in enumerate(dl):
            res.append(x)
            if not i: change(dl)
        return res
    for a,b in zip(batches(StoreDL), batches(TfmdDL), strict=True): assert (a-b).abs().max() < .04
