"Tiny images and models that make a callback test take a moment"
import random
import numpy as np, pytest, torch
from fastai.vision.all import (CategoryBlock, DataBlock, ImageBlock, Learner, RandomResizedCrop, RandomSplitter, XResNet, ResBlock,
                               defaults, get_image_files, parent_label, accuracy, SGD)
from PIL import Image

torch.set_num_threads(1) # tiny tensors gain nothing from more

def tiny_model(n_out=3, p=0.): return XResNet(ResBlock, 1, [1,1,1,1], n_out=n_out, stem_szs=(8,8,64), widen=.125, p=p)

@pytest.fixture(autouse=True)
def device(request, monkeypatch):
    "Where a GPU is, only the tests marked cuda use it; the others are about a CPU, and so are the commands they run"
    on_gpu = request.node.get_closest_marker('cuda') is not None
    monkeypatch.setattr(defaults, 'use_cuda', None if on_gpu else False)
    if not on_gpu: monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')

@pytest.fixture(scope='session')
def image_folder(tmp_path_factory):
    "60 images of 3 classes, 40 px, that can be told apart and have an up and a down"
    path,rng = tmp_path_factory.mktemp('images'),np.random.default_rng(0)
    for i in range(60):
        im = rng.integers(0, 80, (40,40,3), dtype=np.uint8)
        im[:20,:,i%3] += 120
        folder = path/f'class{i%3}'
        folder.mkdir(exist_ok=True)
        Image.fromarray(im).save(folder/f'{i:02}.png')
    return path

@pytest.fixture
def make_dls(image_folder):
    def make(bs=8, size=32, seed=0, split_seed=0, **kwargs):
        block = DataBlock((ImageBlock,CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=RandomSplitter(.2, seed=split_seed),
                          item_tfms=RandomResizedCrop(size, min_scale=.5))
        random.seed(seed)
        return block.dataloaders(image_folder, bs=bs, num_workers=0, path=image_folder, **kwargs)
    return make

@pytest.fixture
def make_learn(make_dls, tmp_path):
    def make(seed=0, model=None, dls=None, **kwargs):
        torch.manual_seed(seed)
        model = model or tiny_model()
        learn = Learner(dls or make_dls(), model, path=tmp_path, **{'metrics':accuracy, 'opt_func':SGD, **kwargs})
        learn.remove_cbs([cb for cb in learn.cbs if cb.name == 'progress'])
        random.seed(seed); torch.manual_seed(seed); np.random.seed(seed)
        return learn
    return make
