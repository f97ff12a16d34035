"Plans made without an object per image, and the fast path staying on"
import random
import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import CategoryBlock, ColReader, ColSplitter, DataBlock, FlipItem, ImageBlock, Learner, RandomResizedCrop, Resize, TensorCategory, TensorImage, Transform, nn, set_seed
from sesemi_fastai.all import SESEMI, Checkpoint, GammaCorrection, ImageStore, LabelReport, Memorisation, Predictions, Prefetch, StoredImageBlock, item_tfms, own_dls, robust_cbs
from sesemi_fastai.batches import light_tfms
from test_resume import Crash
from test_store import photos

light_chains = dict(fastai=item_tfms('fastai', 32), sesemi=item_tfms('sesemi', 32), always=[FlipItem(1.), RandomResizedCrop((24,32))], tall=[RandomResizedCrop(32, min_scale=.9, ratio=(3,4))],
    training_alone=[RandomResizedCrop(32, split_idx=0), Resize(32, split_idx=1)], dark=[GammaCorrection(low=0., high=.1, order=0), RandomResizedCrop(32)])

@pytest.mark.parametrize('device', [None,'cpu'])
@pytest.mark.parametrize('name', light_chains)
def test_plans_without_an_image_are_those_of_the_images(photos, tmp_path, name, device, monkeypatch):
    "Same numbers drawn, same batches, in training and validation, whatever else draws numbers"
    files = sorted(photos.rglob('*.png'))
    store = ImageStore(files, tmp_path/'store').to(device)
    df = pd.DataFrame(dict(path=[str(o) for o in files], label=[o.parent.name for o in files], is_valid=[i%3 == 0 for i in range(len(files))]))
    def batches(light):
        monkeypatch.setattr('sesemi_fastai.batches.light_tfms', light)
        set_seed(0)
        dls = DataBlock((StoredImageBlock(store),CategoryBlock), get_x=ColReader('path'), get_y=ColReader('label'), splitter=ColSplitter('is_valid'), item_tfms=light_chains[name]).dataloaders(df, bs=8, num_workers=0)
        return [*dls.train, *dls.valid, *dls.train],[random.random(), np.random.rand(), torch.rand(1).item()],dls
    (a,drawn_a,_),(b,drawn_b,dls) = batches(lambda fs, split_idx: None),batches(light_tfms)
    assert drawn_a == drawn_b and {type(t) for x in b for t in x} == {TensorImage,TensorCategory}
    for (xa,ya),(xb,yb) in zip(a, b, strict=True): assert torch.equal(ya, yb) and torch.equal(xa, xb)
    assert (dls.train._light() is None) == (name == 'dark')

@pytest.mark.parametrize('name', ['auto','smallloss','none'])
def test_no_image_is_made_alone_whatever_callbacks_look_on(photos, tmp_path, name, monkeypatch):
    "Callbacks that note the order of the items must not turn the fast path off"
    made = []
    monkeypatch.setattr('sesemi_fastai.batches.made_by_pillow', lambda px, plan: made.append(plan))
    dls = own_dls(photos, size=32, bs=8, num_workers=0, store=tmp_path/'store')
    learn = Learner(dls, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)), path=tmp_path, cbs=[*robust_cbs(name), SESEMI(features='0'), Memorisation(), LabelReport(), Predictions()])
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    assert not made and dls.train._known[1].rows.min() >= 0

def test_known_and_new_items_make_one_batch(photos, tmp_path):
    "Items that are files of the store, and one that is not"
    files = sorted(photos.rglob('*.png'))
    store = ImageStore(files[1:], tmp_path/'store')
    df = pd.DataFrame(dict(path=[str(o) for o in files], label=[o.parent.name for o in files]))
    def batches(block):
        set_seed(0)
        dls = DataBlock((block,CategoryBlock), get_x=ColReader('path'), get_y=ColReader('label'), item_tfms=item_tfms('fastai', 32)).dataloaders(df, bs=8, num_workers=0)
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
        learn = Learner(dls, net, path=tmp_path, cbs=[*robust_cbs(name), SESEMI(bs=4, features='3', **kwargs), Memorisation(), LabelReport(), Predictions(), *cbs])
        with learn.no_bar(), learn.no_logging(): learn.fit(3)
        assert '_backward' not in vars(learn) and learn.dl is None
        return torch.cat([p.detach().flatten() for p in net.parameters()])
    for kwargs in (dict(), dict(every=2, turns='one')): assert torch.equal(weights(**kwargs), weights(OnCPU(), **kwargs))

def test_a_run_with_batches_made_ahead_goes_on_as_it_was(photos, tmp_path):
    def go(folder, resume=False, cbs=()):
        set_seed(0)
        dls = own_dls(photos, size=32, bs=8, num_workers=0, store=tmp_path/'store', seed=0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
        learn = Learner(dls, net, path=tmp_path, cbs=[*robust_cbs('auto'), SESEMI(bs=4, features='2'), OnCPU(), Checkpoint(folder, resume), *cbs])
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
