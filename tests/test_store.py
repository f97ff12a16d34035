"The store of decoded images: the same training as from files, two builders, a killed one, a full disk, memory"
import os, shutil, signal, subprocess, sys, time
from pathlib import Path
import random
import numpy as np, pytest, torch
from fastai.vision.all import (CategoryBlock, CropPad, CrossEntropyLossFlat, DataBlock, DihedralItem, FlipItem, ImageBlock, Learner, PILImage, RandomCrop,
                               RandomResizedCrop, RatioResize, Resize, TensorCategory, Transform, accuracy,
                               get_image_files, nn, parent_label, set_seed, xresnet18)
from PIL import Image
from sesemi_fastai.all import ELR, SESEMI, ImageStore, InputError, Memorisation, RobustLoss, StoreDL, StoredImageBlock, UnlabeledStream, own_dls, train_run
from sesemi_fastai import store as store_module
from sesemi_fastai.plans import LazyImage, planned_batch
from sesemi_fastai.store import _mapped

@pytest.fixture
def photos(tmp_path):
    "48 photographs of several shapes in two classes"
    rng = np.random.default_rng(0)
    for i in range(48):
        w,h = rng.integers(50, 90, 2)
        y,x = np.mgrid[:h,:w]
        px = np.stack([127+90*np.sin(x*rng.uniform(.02,.2)+rng.uniform(0,6))*np.cos(y*rng.uniform(.02,.2)) for _ in range(3)], -1)
        f = tmp_path/'photos'/'ab'[i%2]/f'{i:02}.png'
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(px.clip(0,255).astype(np.uint8)).save(f)
    return tmp_path/'photos'

def loaders(path, **kwargs):
    set_seed(0)
    return own_dls(path, 32, bs=8, seed=0, num_workers=0, **kwargs)

def losses(path, **kwargs):
    "Losses of three epochs, labelled and rotated"
    dls = loaders(path, **kwargs)
    set_seed(0)
    learn = Learner(dls, xresnet18(n_out=2), metrics=accuracy, cbs=[SESEMI(seed=1), RobustLoss(ELR()), Memorisation()], path=path.parent)
    with learn.no_bar(), learn.no_logging(): learn.fit(3, 1e-4)
    return np.array([o[:2]+o[3:5] for o in learn.recorder.values])

def test_training_is_that_of_the_files(photos, tmp_path):
    plain,stored = losses(photos),losses(photos, store=tmp_path/'store')
    np.testing.assert_allclose(plain, stored, rtol=.03)

def test_the_unlabeled_stream_comes_from_the_store(photos, tmp_path):
    plain,stored = (UnlabeledStream(loaders(photos, **kw), seed=5) for kw in ({}, dict(store=tmp_path/'store')))
    assert type(stored.dl) is StoreDL
    for _ in range(12): assert (plain.batch()-stored.batch()).abs().max() < .04

@pytest.mark.parametrize('workers', [0,2])
def test_workers_give_the_same_batches(photos, tmp_path, workers):
    def batches(**kw):
        set_seed(0)
        dls = own_dls(photos, 32, bs=8, seed=0, num_workers=workers, **kw)
        return list(dls.train)
    for a,b in zip(batches(), batches(store=tmp_path/'store'), strict=True):
        assert torch.equal(a[1], b[1]) and (a[0]-b[0]).abs().max() < .04

def test_pixels_on_the_device_give_the_same_batches(photos, tmp_path):
    def batches(device):
        dls = loaders(photos, store=tmp_path/'store')
        dls.store.to(device)
        return list(dls.train)+list(dls.valid)
    for a,b in zip(batches(None), batches('cpu'), strict=True): assert torch.equal(a[1], b[1]) and (a[0]-b[0]).abs().max() < .04

def test_a_store_larger_than_the_memory_can_be_opened(tmp_path):
    f = tmp_path/'pixels.u8'
    with f.open('wb') as o: o.truncate(2**42) # sparse: it takes no room on the disk
    px = _mapped(f)
    px[-1] = 7
    assert len(px) == 2**42 and px[-1] == 7 and px[2**41] == 0 and _mapped(f)[-1] == 0 and torch.from_numpy(px[:3]).sum() == 0

@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_pixels_on_the_gpu_are_made_without_waiting(photos, tmp_path):
    store = ImageStore(sorted(photos.rglob('*.png')), tmp_path/'store')
    ims = [LazyImage(store, i).crop_pad((40,30+i%10), (3,5), resize_to=(32,32)) for i in range(48)]
    on_cpu = planned_batch(ims)
    store.to('cuda')
    planned_batch(ims)
    torch.cuda.set_sync_debug_mode('error')
    try: on_gpu = planned_batch(ims)
    finally: torch.cuda.set_sync_debug_mode('default')
    assert on_gpu.is_cuda and (on_cpu.int()-on_gpu.cpu().int()).abs().max() <= 2

def test_an_item_transform_of_the_users_own_sees_a_picture(photos, tmp_path):
    turn = Transform(lambda o: o.rotate(90) if isinstance(o, Image.Image) else o)
    turn.order = 2
    store = ImageStore(get_image_files(photos), tmp_path/'store')
    def dls(block):
        set_seed(0)
        db = DataBlock((block,CategoryBlock), get_y=parent_label, item_tfms=[RandomResizedCrop(32), turn, FlipItem()])
        return db.dataloaders(sorted(get_image_files(photos)), bs=8, num_workers=0)
    a,b = dls(ImageBlock),dls(StoredImageBlock(store))
    random.seed(3); x = a.train.one_batch()
    random.seed(3); y = b.train.one_batch()
    assert (x[0]-y[0]).abs().max() < .01

tables = dict(crop=[RandomCrop(32)], pad=[Resize(60, 'pad', pad_mode='zeros'), CropPad(64)], squish=[Resize(32, 'squish')],
              nearest=[Resize(32, resamples=(Image.NEAREST,Image.NEAREST))],
    dihedral=[Resize(32), DihedralItem()], twice=[Resize(40), RandomResizedCrop(24, min_scale=.5)], ratio=[RatioResize(40), CropPad(32)],
    flips=[FlipItem(1.), RandomCrop(32), FlipItem()])

@pytest.mark.parametrize('name', tables)
def test_transforms_that_cannot_be_planned_get_a_picture(photos, tmp_path, name):
    files = sorted(photos.rglob('*.png'))
    store = ImageStore(files, tmp_path/'store')
    def batches(block):
        set_seed(0)
        return list(DataBlock((block,CategoryBlock), get_y=parent_label, item_tfms=tables[name]).dataloaders(files, bs=8, num_workers=0).train)
    for a,b in zip(batches(ImageBlock), batches(StoredImageBlock(store)), strict=True): assert torch.equal(a[1], b[1]) and (a[0]-b[0]).abs().max() < .01

class TurnLabel(Transform):
    "Acts on the label as well"
    order,split_idx = 3,0
    def encodes(self, x:PILImage): return x.flip_lr()
    def encodes(self, x:TensorCategory): return TensorCategory(1-x)

def test_what_acts_on_labels_acts_on_labels(photos, tmp_path):
    files = sorted(photos.rglob('*.png'))
    store = ImageStore(files, tmp_path/'store')
    def batch(block):
        set_seed(0)
        return DataBlock((block,CategoryBlock), get_y=parent_label, item_tfms=[Resize(32), TurnLabel()]).dataloaders(files, bs=8,
            num_workers=0).train.one_batch()
    a,b = batch(ImageBlock),batch(StoredImageBlock(store))
    assert torch.equal(a[1], b[1]) and (a[0]-b[0]).abs().max() < .01

def test_labels_and_crops_that_change_between_passes_do_so(photos, tmp_path):
    files,labels = sorted(photos.rglob('*.png')),{}
    block = StoredImageBlock(ImageStore(files, tmp_path/'store'))
    block.type_tfms = [*block.type_tfms, lambda im: im.crop_pad(20, (0,0))]
    dls = DataBlock((block,CategoryBlock(vocab=[0,1])), get_y=lambda o: labels.get(o, 0), item_tfms=Resize(32)).dataloaders(files, bs=8, num_workers=0)
    first = [(x,y.sum().item()) for x,y in dls.valid]
    labels.update({o:1 for o in files})
    second = [(x,y.sum().item()) for x,y in dls.valid]
    assert all(torch.equal(a, b) and n == 0 and m > 0 for (a,n),(b,m) in zip(first, second))

def test_own_ways_to_put_a_batch_together(photos, tmp_path):
    dls = loaders(photos, store=tmp_path/'store')
    assert next(iter(dls.train.new(create_batch=lambda b: (torch.ones(len(b)),))))[0].shape[-1] == 8
    single,plain = (next(iter(o.valid.new(bs=None)))[0] for o in (dls,loaders(photos)))
    assert (single-plain).abs().max() < .04

def test_stores_beside_each_other_leave_each_other_alone(photos, tmp_path):
    files = sorted(photos.rglob('*.png'))
    (tmp_path/'.st.keep').mkdir()
    for name in ('st','st.small','a[1]'): ImageStore(files, tmp_path/name)
    assert (tmp_path/'.st.keep').exists() and len(ImageStore(files, tmp_path/'st')) == 48
    (tmp_path/'empty').mkdir()
    (tmp_path/'link').symlink_to(tmp_path/'empty')
    ImageStore(files, tmp_path/'link')
    (tmp_path/'st'/'store.json').write_text('[]')
    with pytest.raises(InputError, match='stale'): ImageStore(files, tmp_path/'st')
    (tmp_path/'st.small'/'shapes.npy').unlink()
    with pytest.raises(InputError, match='damaged'): ImageStore(files, tmp_path/'st.small')
    (tmp_path/'file').write_text('')
    with pytest.raises(InputError): ImageStore(files, tmp_path/'file')

def test_a_batch_from_two_stores(photos, tmp_path):
    files = sorted(photos.rglob('*.png'))
    a,b = ImageStore(files[:24], tmp_path/'a'),ImageStore(files[24:], tmp_path/'b')
    ims = [LazyImage(o, i).crop_pad((32,32), (0,0)) for o in (a,b) for i in range(3)]
    for where in (None,'cpu'):
        for o in (a,b): o.to(where)
        x = planned_batch(ims)
        for o,f in zip(x, files[:3]+files[24:27], strict=True): assert (o.permute(1,2,0).numpy() == np.asarray(Image.open(f))[:32,:32]).all()

def test_lines_of_one_pixel(tmp_path):
    for i,size in enumerate([(1,1),(1,40),(40,1)]*4): Image.new('RGB', size, (20*i,9,9)).save(tmp_path/f'{i:02}.png')
    files = sorted(tmp_path.glob('*.png'))
    store = ImageStore(files, tmp_path/'store')
    def batches(block):
        set_seed(0)
        return list(DataBlock((block,CategoryBlock), get_y=lambda o: int(o.stem)%2, item_tfms=RandomResizedCrop(32)).dataloaders(files, bs=4,
            num_workers=0).train)
    for a,b in zip(batches(ImageBlock), batches(StoredImageBlock(store)), strict=True): assert (a[0]-b[0]).abs().max() < .01

def test_ranger_of_a_network_turned_to_channels_last_between_fits(photos, tmp_path):
    from fastai.vision.all import ranger
    from sesemi_fastai.all import ranger_fused
    def weights(opt):
        dls = loaders(photos)
        set_seed(0)
        learn = Learner(dls, nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)), CrossEntropyLossFlat(), opt_func=opt)
        with learn.no_bar(), learn.no_logging():
            learn.fit(2, 1e-2)
            learn.to_channelslast(to_fp16=False) if 'to_fp16' in learn.to_channelslast.__code__.co_varnames else learn.to_channelslast()
            learn.fit(2, 1e-2)
        return torch.cat([p.detach().flatten() for p in learn.model.parameters()])
    assert (weights(ranger)-weights(ranger_fused)).abs().max() < 1e-4

def test_an_exported_learner_needs_no_store(photos, tmp_path):
    dls = loaders(photos, store=tmp_path/'store')
    learn = Learner(dls, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3,2)), loss_func=CrossEntropyLossFlat(), path=tmp_path)
    new = tmp_path/'new.png'
    Image.new('RGB', (70,50), (200,30,60)).save(new)
    p = learn.predict(new)[2]
    learn.export(tmp_path/'export.pkl')
    code = ("import sys; from fastai.vision.all import *; l = load_learner(sys.argv[1]); assert not any(o.startswith('sesemi') for o in sys.modules); "
            "print(l.predict(sys.argv[2])[2].tolist())")
    shutil.rmtree(tmp_path/'store')
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, tmp_path/'export.pkl', new], capture_output=True, text=True, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    np.testing.assert_allclose(eval(out.stdout.strip().splitlines()[-1]), p, atol=1e-6)

_build = """
import sys,time
from pathlib import Path
from sesemi_fastai import store
if len(sys.argv) > 3:
    decoded = store._decoded
    def slow(f, size): time.sleep(float(sys.argv[3])); return decoded(f, size)
    store._decoded = slow
made = store._build
def build(*args): print('built', flush=True); made(*args)
store._build = build
print(len(store.ImageStore(sorted(Path(sys.argv[1]).rglob('*.png')), sys.argv[2])), flush=True)
"""
def builder(*args):
    return subprocess.Popen([sys.executable, '-W', 'ignore', '-c', _build, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

def test_of_two_builders_one_builds(photos, tmp_path):
    outs = [p.communicate(timeout=120)[0] for p in [builder(photos, tmp_path/'store', .02) for _ in range(2)]]
    assert sorted(outs) == ['48\n','built\n48\n']

def test_a_killed_builder_leaves_nothing_that_is_taken_for_a_store(photos, tmp_path):
    p = builder(photos, tmp_path/'s'/'store', .2)
    assert p.stdout.readline() == 'built\n'
    time.sleep(.5)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert not (tmp_path/'s'/'store'/'store.json').exists()
    assert builder(photos, tmp_path/'s'/'store').communicate(timeout=120)[0] == 'built\n48\n'
    assert sorted(o.name for o in (tmp_path/'s'/'store').iterdir()) == ['.lock','pixels.u8','shapes.npy','store.json']

def test_a_full_disk_is_told_before_and_during_the_building(photos, tmp_path, monkeypatch):
    files = sorted(photos.rglob('*.png'))
    with monkeypatch.context() as m:
        m.setattr(store_module.shutil, 'disk_usage', lambda p: shutil._ntuple_diskusage(10**9, 10**9, 1000))
        with pytest.raises(InputError, match='48 images need about .* GB left'): ImageStore(files, tmp_path/'store')
    with monkeypatch.context() as m:
        def full(*args): raise OSError(28, 'No space left on device')
        m.setattr(store_module.os, 'fsync', full)
        with pytest.raises(InputError, match='cannot be kept in'): ImageStore(files, tmp_path/'store')
    assert [o.name for o in (tmp_path/'store').iterdir()] == ['.lock']

def test_a_file_that_is_cut_off_is_damaged(photos, tmp_path):
    files = sorted(photos.rglob('*.png'))
    ImageStore(files, tmp_path/'store')
    os.truncate(tmp_path/'store/pixels.u8', 100)
    with pytest.raises(InputError, match='damaged: delete it'): ImageStore(files, tmp_path/'store')

_peak = """
import resource,sys
from pathlib import Path
from sesemi_fastai.all import *
from sesemi_fastai.data import table_dls
import pandas as pd
path,times = Path(sys.argv[1]),int(sys.argv[3])
files = [str(o.relative_to(path)) for o in sorted(path.rglob('*.png'))]*times
df = pd.DataFrame(dict(path=files, label=[o[0] for o in files], is_valid=[i%(len(files)//times)%8==7 for i in range(len(files))]))
dls = table_dls(df, path, 32, bs=8, num_workers=0, store=sys.argv[2])
stream = UnlabeledStream(dls)
for _ in range(2):
    for i,_ in zip(range(40), dls.train): stream.batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
def test_memory_does_not_grow_with_the_number_of_images(photos, tmp_path):
    def peak(times):
        return int(subprocess.run([sys.executable, '-W', 'ignore', '-c', _peak, photos, tmp_path/'store', str(times)], capture_output=True,
                                  text=True, check=True).stdout)
    one,ten = peak(1),peak(10)
    assert ten < 1.1*one, (one,ten)

def test_a_run_from_a_store_is_the_run(photos, tmp_path):
    common = dict(dataset='own', path=str(photos), size=32, arch='xresnet18', bs=8, workers=0, epochs=2, precision='fp32', bar=False)
    a = train_run(**common, out=tmp_path/'a')
    b = train_run(**common, out=tmp_path/'b', store=str(tmp_path/'store'))
    assert b['config']['store'] == 'store' and 'store' not in b['overrides']
    for k in ('train_loss','valid_loss','rot_loss'): np.testing.assert_allclose([o[k] for o in a['history']], [o[k] for o in b['history']], rtol=.05)
    with pytest.raises(InputError, match='store_size belongs to store'): train_run(**common, store_size=32)
