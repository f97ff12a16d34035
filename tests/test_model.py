"The feature map is found in models of every kind, and is the one that the label branch pools"
import pytest, torch, torchvision
from torch import nn
from fastai.vision.all import create_vision_model, resnet18, xresnet18, xse_resnext18
from sesemi_fastai.core import InputError
from sesemi_fastai.model import TwoBranch, find_features
from sesemi_fastai.arch import make_model

def pooled_before_head(model, x, head):
    "What goes into the final linear layer"
    got = []
    h = head.register_forward_pre_hook(lambda m,args: got.append(args[0]))
    model(x)
    h.remove()
    return got[0]

# network, its last linear layer, side of the images
cases = {
    'xresnet18': lambda m: m[-1], 'xse_resnext18': lambda m: m[-1], 'resnet18': lambda m: m.fc, 'resnext50_32x4d': lambda m: m.fc,
    'densenet121': lambda m: m.classifier, 'efficientnet_b0': lambda m: m.classifier[1], 'regnet_y_400mf': lambda m: m.fc,
    'resnet10t': lambda m: m.fc, 'seresnet18': lambda m: m.fc}

@pytest.mark.parametrize('arch', cases)
def test_pooled_map_is_what_the_classifier_gets(arch):
    if arch in ('resnet10t','seresnet18'): pytest.importorskip('timm', reason='timm is not installed (extra timm)')
    torch.manual_seed(0)
    model = make_model(arch, 5).eval()
    x = torch.randn(2,3,64,64)
    tb = TwoBranch(model, x)
    with torch.no_grad(): torch.testing.assert_close(tb.body(x).mean((2,3)), pooled_before_head(model, x, cases[arch](model)), atol=1e-4, rtol=1e-4)
    assert tb.rotated(x).shape == (2,4)

@pytest.mark.parametrize('arch,nf', [('convnext_atto',320), ('vit_tiny_patch16_224',192), ('swin_tiny_patch4_window7_224',768)])
def test_timm_models_with_other_layouts(arch, nf):
    timm = pytest.importorskip('timm', reason='timm is not installed (extra timm)')
    kw = {} if arch.startswith('conv') else dict(img_size=32) if arch.startswith('vit') else dict(img_size=64, window_size=2)
    model = timm.create_model(arch, num_classes=5, **kw).eval()
    x = torch.randn(2,3,kw.get('img_size', 64),kw.get('img_size', 64))
    tb = TwoBranch(model, x)
    assert tb.head.linear.in_features == nf and tb.rotated(x).shape == (2,4)
    with torch.no_grad():
        want = model(x)
        with tb.along(x) as res: torch.testing.assert_close(model(x), want, atol=1e-4, rtol=1e-4)
    assert res[0].shape == (2,4)

def test_vision_learner_with_and_without_concat_pool():
    x = torch.randn(2,3,64,64)
    for concat in (True,False):
        m = create_vision_model(resnet18, 5, pretrained=False, concat_pool=concat).eval()
        torch.testing.assert_close(TwoBranch(m, x).body(x), m[0](x))

def test_squeeze_and_excitation_is_not_the_end_of_the_body():
    from fastai.vision.all import Flatten, create_body
    body = create_body(xse_resnext18(n_out=5), cut=-4)
    model,x = nn.Sequential(body, nn.Sequential(Flatten(), nn.LazyLinear(5))).eval(),torch.randn(2,3,64,64)
    model(x)
    torch.testing.assert_close(TwoBranch(model, x).body(x), body(x))

class OwnNet(nn.Module):
    "Squeeze-and-excitation in the middle or at the end, and a pooling function behind it"
    class Squeeze(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.pool,self.fc = nn.AdaptiveAvgPool2d(1),nn.Linear(n, n)
        def forward(self, x): return x*self.fc(self.pool(x).flatten(1)).sigmoid()[...,None,None]
    def __init__(self, last):
        super().__init__()
        self.body,self.fc = nn.Sequential(nn.Conv2d(3, 12, 3, 2), self.Squeeze(12), *([] if last else [nn.Conv2d(12, 12, 3)])),nn.Linear(12, 5)
    def forward(self, x): return self.fc(self.body(x).mean((2,3)))

@pytest.mark.parametrize('last', [True,False])
def test_pool_of_squeeze_and_excitation_is_not_taken(last):
    model,x = OwnNet(last),torch.randn(2,3,32,32)
    with pytest.raises(InputError, match='pass features='): TwoBranch(model, x)
    assert model.training and TwoBranch(model, x, 'body').head.linear.in_features == 12

def test_named_map_with_channels_last():
    model = torchvision.models.swin_t(num_classes=5).eval()
    for x in (torch.randn(1,3,64,64),torch.randn(1,3,64,96)):
        heads = [TwoBranch(model, x, name).head for name in (None,'norm','features')]
        assert [(o.linear.in_features,o.dims) for o in heads] == [(768,(2,3)),(768,(1,2)),(768,(1,2))]
    square = TwoBranch(nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(), nn.LazyLinear(5)), torch.randn(2,3,32,32), '0')
    assert square.head.dims == (2,3) # eight channels, eight pixels wide and high

def test_norm_that_gives_a_map():
    timm = pytest.importorskip('timm', reason='timm is not installed (extra timm)')
    model = timm.create_model('resnetv2_18', num_classes=5).eval()
    head = TwoBranch(model, torch.randn(2,3,64,64)).head
    assert (head.linear.in_features,head.dims) == (512,(2,3))

def test_squeezenet_pools_class_scores():
    with pytest.raises(InputError, match='pass features='): find_features(make_model('squeezenet1_1', 5))
    assert TwoBranch(make_model('squeezenet1_1', 5), torch.randn(2,3,64,64), 'features').head.linear.in_features == 512

def test_named_module_or_the_module_itself():
    m,x = torchvision.models.resnet18(num_classes=5).eval(),torch.randn(2,3,64,64)
    for features in ('layer3', m.layer3):
        assert TwoBranch(m, x, features).head.linear.in_features == 256

def test_what_cannot_be_split_says_what_to_pass():
    class Odd(nn.Module):
        def __init__(self): super().__init__(); self.trunk,self.out = nn.Conv2d(3,8,3),nn.Linear(8,2)
        def forward(self, x): return self.out(self.trunk(x).mean((2,3)))
    m,x = Odd(),torch.randn(2,3,16,16)
    with pytest.raises(InputError, match="pass features=.*'trunk', 'out'"): find_features(m)
    assert TwoBranch(m, x, 'trunk').head.linear.in_features == 8
    with pytest.raises(InputError, match='3 or 4 dimensions'): TwoBranch(m, x, 'out')
    with pytest.raises(InputError, match='not a module of this model'): find_features(m, nn.Linear(1,1))

def test_modes_and_statistics_stay():
    m = xresnet18(n_out=5).train()
    m[4].eval()
    modes,before = [o.training for o in m.modules()],{k:v.clone() for k,v in m.state_dict().items()}
    TwoBranch(m, torch.randn(2,3,32,32))
    assert modes == [o.training for o in m.modules()]
    assert all(torch.equal(before[k], v) for k,v in m.state_dict().items())
