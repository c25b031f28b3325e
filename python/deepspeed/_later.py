"""Names of features that do not exist yet. They can be imported and compared with; using one raises NotImplementedError.

The table has a line per feature, and below it the modules with their names. A name that begins with a capital letter is a class,
`*` makes it a torch.nn.Module, `!` an exception, `name.method` is a static method of the class before it; other names are functions. `=`
gives names of other modules a second path: all of them, or those in brackets. A module without names is a folder of others.
"""
from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from deepspeed._lazy import not_built, not_built_class

_NAMES = """
pipeline parallelism
  runtime.pipe.module: PipelineModule* LayerSpec TiedLayerSpec PipelineError!
  runtime.pipe.topology: ProcessTopology PipeDataParallelTopology PipeModelDataParallelTopology PipelineParallelGrid
  runtime.pipe.engine: PipelineEngine* = runtime.pipe.module[PipelineError]
  runtime.pipe.dualpipev: DualPipeVEngine* DualPipeVModule*
  runtime.pipe.schedule: PipeSchedule TrainSchedule InferenceSchedule DataParallelSchedule PipeInstruction BufferOpInstruction
    LoadMicroBatch ForwardPass BackwardPass SendActivation RecvActivation SendGrad RecvGrad ReduceGrads ReduceTiedGrads OptimizerStep
  runtime.pipe.p2p: send recv init_process_groups can_send_recv
  runtime.pipe: = runtime.pipe.module[PipelineModule,LayerSpec,TiedLayerSpec] runtime.pipe.topology

mixture of experts
  moe.layer: MoE*
  moe.experts: Experts*
  moe.sharded_moe: MOELayer* TopKGate* top1gating top2gating topkgating _capacity
  moe.mappings: drop_tokens gather_tokens

tensor parallelism
  module_inject.layers: LinearAllreduce* LinearLayer* LmHeadLinearAllreduce* TensorParallel_Layer* VocabParallelEmbedding* VocabParallelLinear*
    EmbeddingLayer* Normalize* set_autotp_mode
  module_inject.auto_tp: AutoTP AutoTP.tp_parser AutoTP.supported AutoTP.get_module_list ReplaceWithTensorSlicing Loading
  module_inject.tp_shard: get_shard_size get_shard_size_list get_num_kv_heads get_n_embd get_num_attention_heads set_num_kv_heads set_n_embd
    set_num_attention_heads set_tp_grain_size
  module_inject.fusedqkv_utils: require_tp_fused_qkvw prepare_tp_fused_qkvw
  runtime.tensor_parallel: TpTrainingManager TPTrainingConfig TPConfig
  runtime.state_dict_factory: SDLoaderFactory SDLoaderFactory.get_sd_loader SDLoaderFactory.get_sd_loader_json

module injection
  module_inject.replace_module: replace_transformer_layer revert_transformer_layer replace_module = module_inject.auto_tp[ReplaceWithTensorSlicing]
  module_inject.policy: DSPolicy TransformerPolicy
  module_inject.replace_policy: HFBertLayerPolicy HFCLIPLayerPolicy HFGPT2LayerPolicy HFGPTJLayerPolicy HFGPTNEOLayerPolicy HFOPTLayerPolicy
    BLOOMLayerPolicy GPTNEOXLayerPolicy HFDistilBertLayerPolicy LLAMALayerPolicy LLAMA2LayerPolicy InternLMLayerPolicy MegatronLayerPolicy
    UNetPolicy VAEPolicy
  module_inject.module_quantize: quantize_transformer_layer
  module_inject: = module_inject.replace_module[replace_transformer_layer,revert_transformer_layer,ReplaceWithTensorSlicing]
    module_inject.auto_tp[AutoTP] module_inject.policy module_inject.replace_policy module_inject.module_quantize
    module_inject.layers[LinearAllreduce,LinearLayer,EmbeddingLayer,Normalize,set_autotp_mode]
  ops.transformer.inference: DeepSpeedTransformerInference* DeepSpeedInferenceConfig DeepSpeedMoEInference* DeepSpeedMoEInferenceConfig
  model_implementations.transformers:
  model_implementations.transformers.ds_transformer: = ops.transformer.inference[DeepSpeedTransformerInference]
  model_implementations: = ops.transformer.inference[DeepSpeedTransformerInference,DeepSpeedInferenceConfig]

sequence parallelism
  sequence.layer: DistributedAttention* single_all_to_all
  sequence.fpdt_layer: FPDT_Attention* FPDT_FFN* FPDT_InputConstruct* FPDT_LogitsLoss*
  sequence.cross_entropy: vocab_parallel_cross_entropy vocab_sequence_parallel_cross_entropy
  sequence.auto_sp: auto_wrap_model_for_sp
  sequence: = sequence.auto_sp

the hybrid engine
  runtime.hybrid_engine: DeepSpeedHybridEngine*

FastGen
  inference.v2.config_v2: RaggedInferenceEngineConfig DeepSpeedTPConfig
  inference.v2.engine_v2: InferenceEngineV2
  inference.v2.engine_factory: build_hf_engine build_engine_from_ds_checkpoint
  inference.v2.ragged: DSStateManagerConfig KVCacheConfig MemoryConfig
  inference.v2.scheduling_utils: SchedulingResult SchedulingError!
  inference.v2: = inference.v2.config_v2 inference.v2.engine_v2 inference.v2.engine_factory

optimized linear layers
  linear.config: LoRAConfig QuantizationConfig
  linear.optimized_linear: OptimizedLinear* LoRAOptimizedLinear*
  linear.quantization: QuantizedParameter QuantizedLinear*
  linear.context_manager: Init init_lora
  linear: = linear.config linear.optimized_linear linear.quantization linear.context_manager

the fused transformer layer
  ops.transformer.transformer: DeepSpeedTransformerLayer* DeepSpeedTransformerConfig
  ops.transformer: = ops.transformer.transformer ops.transformer.inference

Evoformer attention
  ops.deepspeed4science: DS4Sci_EvoformerAttention

the floating-point quantizer
  ops.fp_quantizer: FP_Quantize Quantizer

the kernel quantizer
  ops.quantizer: ds_quantizer

sparse attention
  ops.sparse_attention: SparseSelfAttention* BertSparseSelfAttention* SparseAttentionUtils SparsityConfig DenseSparsityConfig FixedSparsityConfig
    VariableSparsityConfig BigBirdSparsityConfig BSLongformerSparsityConfig LocalSlidingWindowSparsityConfig

random layer-token dropping
  ops.random_ltd.dropping_utils: gpt_sample_tokens bert_sample_tokens GatherTokens ScatterTokens
  ops.random_ltd: = ops.random_ltd.dropping_utils
  runtime.data_pipeline:
  runtime.data_pipeline.data_routing:
  runtime.data_pipeline.data_routing.helper: convert_to_random_ltd save_without_random_ltd
  runtime.data_pipeline.data_routing.basic_layer: RandomLayerTokenDrop*

data efficiency
  runtime.data_pipeline.data_sampling:
  runtime.data_pipeline.data_sampling.data_analyzer: DataAnalyzer DistributedDataAnalyzer
  runtime.data_pipeline.data_sampling.data_sampler: DeepSpeedDataSampler
  runtime.data_pipeline.data_sampling.indexed_dataset: MMapIndexedDataset MMapIndexedDatasetBuilder
  runtime.data_pipeline.data_sampling.variable_batch_size_and_lr: get_dataloader_and_lr_scheduler_for_variable_batch_size_deepspeed
    batch_by_seqlens scale_lr
  runtime.data_pipeline.curriculum_scheduler: CurriculumScheduler

Domino
  runtime.domino:
  runtime.domino.transformer: DominoTransformer* DominoTransformerLayer*

compression
  compression.compress: init_compression redundancy_clean student_initialization
  compression.scheduler: compression_scheduler

1-bit optimizers
  runtime.fp16.onebit.adam: OnebitAdam
  runtime.fp16.onebit.lamb: OnebitLamb
  runtime.fp16.onebit.zoadam: ZeroOneAdam
  runtime.fp16.onebit: = runtime.fp16.onebit.adam runtime.fp16.onebit.lamb runtime.fp16.onebit.zoadam

ZenFlow
  ops.adam.zenflow_cpu_adam: ZenFlowCPUAdam
  ops.adam.zenflow_torch_adam: ZenFlowSelectiveAdamW ZenFlowSelectiveAdamW_stage3
  runtime.zenflow:
  runtime.zenflow.zenflow_config: ZenFlowConfig

SuperOffload
  runtime.superoffload:
  runtime.superoffload.superoffload_stage3: SuperOffloadOptimizer_Stage3

restarts with another number of ranks by an agent (the launcher restarts jobs)
  elasticity.elastic_agent: DSElasticAgent

autotuning
  autotuning.autotuner: Autotuner
  autotuning: = autotuning.autotuner

progressive layer dropping
  runtime.progressive_layer_drop: ProgressiveLayerDrop

eigenvalues of the Hessian
  runtime.eigenvalue: Eigenvalue

quantization during training
  runtime.quantize: Quantizer

sparse gradients
  runtime.sparse_tensor: SparseTensor

swapping of tensors by the program itself (deepspeed.ops.aio reads and writes tensors)
  runtime.swap_tensor.partitioned_param_swapper: AsyncPartitionedParameterSwapper
  runtime.swap_tensor.async_swapper: AsyncTensorSwapper

checkpoint engines of the program's own
  runtime.checkpoint_engine.checkpoint_engine: CheckpointEngine CheckpointCommitInfo
  runtime.checkpoint_engine.torch_checkpoint_engine: TorchCheckpointEngine
  runtime.checkpoint_engine.fast_checkpoint_engine: FastCheckpointEngine
  runtime.checkpoint_engine.decoupled_checkpoint_engine: DecoupledCheckpointEngine
  runtime.checkpoint_engine.datastates_checkpoint_engine: DataStatesCheckpointEngine
  runtime.checkpoint_engine.utils: create_checkpoint_engine
  runtime.checkpoint_engine: = runtime.checkpoint_engine.checkpoint_engine runtime.checkpoint_engine.torch_checkpoint_engine
    runtime.checkpoint_engine.fast_checkpoint_engine runtime.checkpoint_engine.decoupled_checkpoint_engine
    runtime.checkpoint_engine.datastates_checkpoint_engine runtime.checkpoint_engine.utils

DeepCompile
  compile:
  compile.config: CompileConfig

collectives of lists of tensors
  runtime.comm:
  runtime.comm.coalesced_collectives: reduce_scatter_coalesced all_to_all_quant_reduce

reshaping of Megatron-DeepSpeed's checkpoints
  checkpoint.deepspeed_checkpoint: DeepSpeedCheckpoint
  checkpoint.reshape_meg_2d: reshape_meg_2d_parallel meg_2d_parallel_map get_mpu_ranks
  checkpoint.reshape_3d_utils: model_3d_desc get_model_3d_descriptor
  checkpoint.reshape_utils: merge_state partition_data
  checkpoint.zero_checkpoint: ZeROCheckpoint

DeepSpeed's own sharding in parts (parameters are sharded by the core)
  runtime.zero.contiguous_memory_allocator: ContiguousMemoryAllocator
  runtime.zero.partitioned_param_coordinator: PartitionedParameterCoordinator
  utils.mixed_precision_linkage: link_hp_params lazy_init_hp_params_optimizer_state
  ops.adam.multi_tensor_apply: MultiTensorApply

DeepSpeed's debugging prints
  utils.debug: debug_extract_module_and_param_names debug_clear_module_and_param_names debug_module2name debug_param2name log_rank_file

communication backends as classes
  comm.torch: TorchBackend

weight quantization of checkpoints
  runtime.weight_quantizer: WeightQuantization

DeepSpeed's launcher as Python classes (`deepspeed` is a program here)
  launcher.multinode_runner: MultiNodeRunner PDSHRunner OpenMPIRunner MPICHRunner IMPIRunner SlurmRunner MVAPICHRunner
"""


@dataclass(frozen=True)
class Later:
    """A name of a feature that does not exist yet."""

    feature: str
    kind: str = "class"  # or "module", "exception", "function"
    methods: tuple[str, ...] = ()

    def make(self, path: str) -> Any:
        """The object behind `path`, "deepspeed.module.name"."""
        if self.kind == "function":
            return not_built(path, self.feature)
        if self.kind == "exception":
            module, _, name = path.rpartition(".")
            return type(name, (Exception,), {"__module__": module, "__doc__": f"{self.feature}: not built yet; never raised."})
        base: type = object
        if self.kind == "module":
            from torch.nn import Module
            base = Module
        made = not_built_class(path, self.feature, base)
        for method in self.methods:
            refuse = not_built(f"{path}.{method}", self.feature)
            refuse.__module__ = made.__module__
            setattr(made, method, staticmethod(refuse))
        return made


_KINDS = {"*": "module", "!": "exception"}


def _read(words: list[str], feature: str, table: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The names of one module: new ones, and after "=" those of others as "module:name"."""
    names: dict[str, Any] = {}
    new, _, second = " ".join(words).partition("=")
    for word in new.split():
        name, _, method = word.rstrip("*!").partition(".")
        if method:
            names[name] = Later(feature, names[name].kind, (*names[name].methods, method))
        else:
            names[name] = Later(feature, _KINDS.get(word[-1], "class" if name[0].isupper() else "function"))
    for home, chosen in re.findall(r"([\w.]+)(?:\[([\w,]+)\])?", second):
        for name in chosen.split(",") if chosen else table[f"deepspeed.{home}"]:
            original = table[f"deepspeed.{home}"][name]
            names[name] = original if isinstance(original, str) else f"deepspeed.{home}:{name}"
    return names


def modules() -> dict[str, dict[str, Any]]:
    """Module path: {name: Later, or "module:name" for the second path of one}."""
    table: dict[str, dict[str, Any]] = {}
    feature = ""
    for line in re.sub(r"\n {4,}", " ", _NAMES).splitlines():
        if line.startswith(" "):
            module, _, words = line.strip().partition(":")
            table[f"deepspeed.{module}"] = _read(words.split(), feature, table)
        elif line:
            feature = line
    return table
