"""Parameters, gradients and optimizer states sharded over the processes, by ``fully_shard`` of torch (FSDP2)."""

import atexit
import math
import time
from collections.abc import Callable
from inspect import signature
from typing import Any

import mmengine
import torch
from mmengine._strategy import BaseStrategy, DDPStrategy
from mmengine.device import get_device
from mmengine.dist import broadcast, get_world_size, is_main_process
from mmengine.model import BaseDataPreprocessor
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import FUNCTIONS, OPTIM_WRAPPERS, STRATEGIES
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ...models.backbones.encoder_branch import EncoderBranch
from ...models.precision import wanted_dtypes, weights_as_in_files
from ...models.tuners import BaseTuner
from ...models.vlms.family_model import FamilyModel
from ...models.vlms.hf.loading import parse_dtype
from ...models.vlms.quantization import is_quantized
from ...models.vlms.wrap_policy import exact_parameters
from ...utils.text import shown
from ..optim_wrappers import FSDPOptimWrapper
from ..weights.sharded_checkpoint import MODEL, OPTIMIZER, TIED, ShardedCheckpoint, is_sharded, save_sharded


@STRATEGIES.register_module()
class FSDP2Strategy(DDPStrategy):
    """Shards a model with torch's ``fully_shard`` (FSDP2): each process keeps its part of every weight, of its gradient
    and of its optimizer state.

    Any config becomes sharded by ``strategy=dict(type='FSDP2Strategy')``; its ``optim_wrapper`` stays as it is:

    - With ``AmpOptimWrapper(dtype='bfloat16')``, weights are gathered in bfloat16, the forward runs under autocast, and
      gradients are reduced in ``reduce_dtype``. Shards, gradients and states are float32.
    - With ``OptimWrapper``, weights are gathered in their own dtype.

    *Units.* Weights of a unit are gathered for its forward and for its backward, and are freed after both. All
    weights that are in no unit form the root, which stays gathered from the beginning of the forward to the end of the
    backward: vision tower, projector, embeddings, head. So patches can be scored with the tower. Several forwards in a
    step are allowed. Processes have to run the same units in the same order: their batches may differ in length and in
    modality, but not in the task of a unified model (`ModalitySampler`).

    *Memory.* A model with ``pretrained`` weights is built from files that stay mapped to memory. Units are read,
    broadcast from the main process, and sharded one after the other, so that no process holds the whole model.

    *Checkpoints* are folders of ``torch.distributed.checkpoint``, from which any number of processes resumes.
    Checkpoints of unsharded runs (``.pth``) can be loaded and resumed, too. On machines without a GPU the processes
    use gloo, and one process without a launcher is enough: with ``cpu_offload``, one GPU trains a model that it cannot
    hold.

    Args:
        units (str | Callable): Which modules are units: a registered function, or a function, of ``(module, recurse,
            nonwrapped_numel)``; it is called with ``recurse=False``. Defaults to ``'wrap_decoder_layers'``.
        cpu_offload (bool): Whether shards, gradients and states are kept in the memory of the CPU, where the optimizer
            runs. Defaults to False.
        reshard_after_forward (bool): Whether units are freed between forward and backward. False gathers them once
            a step, and needs memory for the whole model in the precision of computation. Defaults to True.
        reduce_dtype (str): In which gradients are reduced over the processes. Defaults to ``'float32'``.
        mesh (dict, optional): Arguments of torch's ``init_device_mesh``, e.g. ``dict(mesh_shape=(2, 8),
            mesh_dim_names=('replicate', 'shard'))``: weights are sharded over 8 processes, and copied twice. Defaults
            to None: sharded over all processes.
        **kwargs: Arguments of MMEngine's ``DDPStrategy``, except ``model_wrapper``.

    Raises:
        ValueError: If an option is unknown or cannot be used, if the optimizer wrapper is of another type or computes
            in float16, if weights are quantized, if the model should be compiled, or if a checkpoint does not fit the
            model.

    Examples:
        >>> strategy = dict(type='FSDP2Strategy', cpu_offload=True)
    """

    def __init__(
        self,
        *,
        units: str | Callable = 'wrap_decoder_layers',
        cpu_offload: bool = False,
        reshard_after_forward: bool = True,
        reduce_dtype: str = 'float32',
        mesh: dict | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.pop('model_wrapper', None) is not None:
            raise ValueError('FSDP2Strategy: strategy.model_wrapper is for DDPStrategy; remove it: nothing is wrapped')
        if unknown := sorted(kwargs.keys() - {'sync_bn', *signature(BaseStrategy.__init__).parameters}):
            raise ValueError(
                f'FSDP2Strategy: strategy has {", ".join(unknown)}; allowed are units, cpu_offload, '
                'reshard_after_forward, reduce_dtype, mesh and sync_bn. Precision is that of optim_wrapper'
            )
        for key, value in dict(cpu_offload=cpu_offload, reshard_after_forward=reshard_after_forward).items():
            if not isinstance(value, bool):
                raise ValueError(f'FSDP2Strategy: {key}={value!r} must be True or False')
        found = FUNCTIONS.get(units) if isinstance(units, str) else units
        if not callable(found):
            raise ValueError(f'FSDP2Strategy: units={units!r} must be a function, or the name of a registered one')
        self._is_unit = found
        self._cpu_offload = cpu_offload
        self._reshard_after_forward = reshard_after_forward
        try:
            self._reduce_dtype = parse_dtype(reduce_dtype)
        except ValueError as error:
            raise ValueError(f'FSDP2Strategy: reduce_{error}') from None
        self._mesh_options = dict(mesh or {})
        # Of the optimizer wrapper: what weights are gathered in; None is their own dtype.
        self._dtype: torch.dtype | None = None
        # The checkpoint that was loaded last, whose optimizer states may be read after it.
        self._loaded: ShardedCheckpoint | None = None
        super().__init__(**kwargs)

    def _setup_distributed(  # type: ignore[override]  # As in DDPStrategy.
        self, launcher: str = 'pytorch', backend: str = 'nccl', **kwargs: Any
    ) -> None:
        super()._setup_distributed(launcher, self._backend(backend), **kwargs)

    def _backend(self, backend: str) -> str:
        # The norm of gradients on the CPU is summed over the processes by gloo.
        return 'cpu:gloo,cuda:nccl' if self._cpu_offload and backend == 'nccl' else backend

    # ------------------------------------------------------------------ the model

    def prepare(self, model: nn.Module | dict, *, optim_wrapper=None, compile: dict | bool = False, **kwargs):
        """Shard the model, and build its optimizer and schedules; see MMEngine's strategies for the arguments."""
        if compile:
            raise ValueError('FSDP2Strategy: compile is not supported with sharded weights; remove it')
        if optim_wrapper is not None and not self._prepared:
            optim_wrapper = self._own_wrapper(optim_wrapper)
        return super().prepare(model, optim_wrapper=optim_wrapper, **kwargs)

    def _own_wrapper(self, cfg: Any) -> dict:
        """The config of an optimizer wrapper for sharded models, from which the precision is taken."""
        allowed = 'OptimWrapper, AmpOptimWrapper with dtype="bfloat16", or FSDPOptimWrapper'
        if not isinstance(cfg, dict) or 'optimizer' not in cfg or isinstance(cfg['optimizer'], torch.optim.Optimizer):
            raise ValueError(
                f'FSDP2Strategy: optim_wrapper is a built {type(cfg).__name__}, or of several optimizers; give the '
                f'config of one: weights are sharded before the optimizer is built ({allowed})'
            )
        cfg = dict(cfg)
        kind = cfg.get('type', 'OptimWrapper')
        kind = OPTIM_WRAPPERS.get(kind) if isinstance(kind, str) else kind
        if kind is AmpOptimWrapper:
            dtype = cfg.pop('dtype', None) or torch.float16  # MMEngine's default.
            self._dtype = parse_dtype(dtype)
            if self._dtype != torch.bfloat16:
                raise ValueError(
                    f'FSDP2Strategy: optim_wrapper.dtype={str(self._dtype)!r} needs a scaled loss, which is not '
                    "supported with sharded weights; set optim_wrapper.dtype='bfloat16'"
                )
            for key in ('loss_scale', 'use_fsdp'):  # bfloat16 has the range of float32.
                cfg.pop(key, None)
        elif kind not in (OptimWrapper, FSDPOptimWrapper):
            raise ValueError(f'FSDP2Strategy: optim_wrapper.type={cfg.get("type")!r} must be {allowed}')
        return dict(cfg, type=FSDPOptimWrapper)

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """Build the model; its weights stay in their files until they are sharded."""
        with weights_as_in_files():
            return super().build_model(model)

    def _init_model_weights(self, model: nn.Module) -> nn.Module:
        # The main process' weights are broadcast later, unit by unit.
        if hasattr(model, 'init_weights') and self.dispatch_kwargs.get('init_weights_for_test_or_val', True):
            with weights_as_in_files():
                model.init_weights()
        return model

    def _wrap_model(self, model: nn.Module) -> nn.Module:  # type: ignore[override]  # Nothing is wrapped.
        if is_quantized(model):
            raise ValueError(
                'FSDP2Strategy: weights of 4 bits (quantization_config) are not sharded; train such a model with DDP, '
                'without a strategy, or without quantization_config'
            )
        self._start_process_group()
        model = self.convert_model(model)
        device = torch.device(get_device())
        options = {'mesh_shape': (get_world_size(),), **self._mesh_options}
        if math.prod(options['mesh_shape']) != get_world_size():
            raise ValueError(
                f'FSDP2Strategy: mesh.mesh_shape={options["mesh_shape"]} is not for {get_world_size()} processes'
            )
        mesh = init_device_mesh(device.type, **options)
        exact = set(exact_parameters(model))
        offload = CPUOffloadPolicy(pin_memory=device.type != 'cpu') if self._cpu_offload else OffloadPolicy()
        # Inner modules come later in this list, and are sharded first.
        units = [one for one in model.modules() if one is not model and self._is_unit(one, False, 0)]
        for module in [*reversed(units), model]:
            _share(module, device)
            # Encoders compute in their own dtype, to which they cast their images themselves.
            is_encoder = isinstance(module, EncoderBranch)
            dtype = None if is_encoder else self._dtype
            fully_shard(
                module,
                mesh=mesh,
                reshard_after_forward=module is not model and self._reshard_after_forward,
                mp_policy=MixedPrecisionPolicy(dtype, self._reduce_dtype, cast_forward_inputs=False),
                offload_policy=offload,
                ignored_params=exact,
            )
            if is_encoder and module is not model:
                # They keep no graph. torch would prefetch them all the same, on the ranks that have images.
                module.set_unshard_in_backward(False)
            if device.type == 'cpu':
                # gloo of torch 2.8 gives the sum where it is asked for the mean.
                module.set_force_sum_reduction_for_comms(True)
        _cast(model, wanted_dtypes(model))
        for module in model.modules():
            if isinstance(module, FamilyModel):
                layers = set(module.family.language_model.modules())
                for layer in filter(layers.__contains__, units):
                    layer.register_forward_pre_hook(_reach_backward, prepend=True, with_kwargs=True)
            if isinstance(module, BaseTuner):
                module.widen_trained()  # The weights have their dtypes now.
            elif isinstance(module, BaseDataPreprocessor):
                module.to(device)
            if any(isinstance(one, DTensor) for one in module._parameters.values()):
                module.register_load_state_dict_pre_hook(_shard_loaded)
        if self._dtype is not None:
            forward: Any = torch.autocast(device.type, dtype=self._dtype)(model.forward)
            model.forward = forward
        self.logger.info(
            f'FSDP2: {len(units)} units and the root, sharded over {mesh.size()} processes; weights are gathered in '
            f'{"their own dtype" if self._dtype is None else self._dtype}.'
        )
        return model

    def _start_process_group(self) -> None:
        """Let a process without a launcher be the only one of a group."""
        if not torch.distributed.is_initialized():
            backend = 'gloo' if get_device() == 'cpu' else self._backend('nccl')
            torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
            atexit.register(_stop_process_group)

    # ------------------------------------------------------------------ checkpoints

    def save_checkpoint(
        self,
        filename: str,
        *,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        extra_ckpt: dict | None = None,
        callback: Callable | None = None,
    ) -> None:
        """Write a folder; every process writes its shards. A collective.

        The callback gets everything but the tensors.
        """
        tensors = {MODEL + name: tensor for name, tensor in _named_tensors(self.model).items()}
        content = dict(extra_ckpt or {})
        content['meta'] = dict(
            content.get('meta', {}),
            seed=self.seed,
            time=time.strftime('%Y%m%d_%H%M%S', time.localtime()),
            mmengine=mmengine.__version__,
        )
        content['state_dict'] = {}  # The hooks of checkpoints look for it.
        content[TIED] = _tied_names(self.model)
        if save_optimizer and hasattr(self, 'optim_wrapper'):
            state, content['optimizer'] = self._split_optimizer()
            tensors |= state
        if save_param_scheduler and hasattr(self, 'param_schedulers'):
            content['param_schedulers'] = self.scheduler_state_dict()
        if callback is not None:
            callback(content)
        save_sharded(filename, tensors, content)

    def load_checkpoint(
        self, filename: str, *, strict: bool = False, callback: Callable | None = None, **kwargs
    ) -> dict:
        """Load weights from a folder of this strategy, or from a file; see MMEngine's strategies for the arguments.

        Raises:
            ValueError: If the weights of a folder do not fit the model.
        """
        _reshard(self.model)
        self._loaded = None
        if not is_sharded(filename):
            # To the CPU whatever is asked for: a file holds the weights of all processes.
            kwargs['map_location'] = 'cpu'
            return super().load_checkpoint(filename, strict=strict, callback=callback, **kwargs)
        self.logger.info(f'Load checkpoint from {filename}')
        self._loaded = ShardedCheckpoint(filename)
        content = self._loaded.rest()
        if callback is not None:
            callback(content)
        own = {MODEL + name: tensor for name, tensor in _named_tensors(self.model).items()}
        missing = sorted(own.keys() - self._loaded.tensors.keys())
        unknown = sorted(name for name in self._loaded.tensors.keys() - own.keys() if name.startswith(MODEL))
        for names, what in ((missing, 'lacks'), (unknown, 'has in addition')):
            if names:
                text = ', '.join(shown(name.removeprefix(MODEL)) for name in names[:3])
                line = f'The checkpoint {filename} {what} {len(names)} weights ({text}, ...)'
                if strict or (what == 'lacks' and len(names) == len(own)):
                    raise ValueError(f'FSDP2Strategy: {line}')
                self.logger.warning(line)
        self._loaded.load({name: tensor for name, tensor in own.items() if name not in missing})
        return content

    def resume(self, filename: str, **kwargs) -> dict:
        """Resume from a folder of this strategy, of any number of processes, or from a file of an unsharded run."""
        checkpoint = super().resume(filename, **kwargs)
        self._loaded = None
        return checkpoint

    def optim_state_dict(self) -> dict:
        raise NotImplementedError('FSDP2Strategy: optimizer states are saved with the checkpoint, in shards')

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load optimizer states: those of the folder that was loaded last, or whole ones."""
        optimizer = self.optim_wrapper.optimizer
        parameters = [one for group in optimizer.param_groups for one in group['params']]
        state_dict = dict(state_dict)
        if self._loaded is not None:
            names = {parameter: name for name, parameter in self.model.named_parameters()}
            ours = [[names[one] for one in group['params']] for group in optimizer.param_groups]
            theirs = state_dict.pop('names')
            if ours != theirs:
                raise ValueError(
                    f'FSDP2Strategy: the checkpoint {self._loaded.folder} trains other weights, or in other groups of '
                    'optim_wrapper.paramwise_cfg: resume with the config of its training, or set load_from without '
                    'resume'
                )
            state_dict['state'] = self._read_states(names, parameters, state_dict['state'])
        else:
            state_dict['state'] = {
                index: {key: _like(value, parameters[index]) for key, value in values.items()}
                for index, values in state_dict['state'].items()
            }
        super().load_optim_state_dict(state_dict)

    def _split_optimizer(self) -> tuple[dict[str, Tensor], dict]:
        """The tensors of the optimizer's states by name, and the rest of its state dict."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        optimizer = self.optim_wrapper.optimizer
        tensors: dict[str, Tensor] = {}
        others: dict[str, dict] = {}
        for parameter, values in optimizer.state.items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f'{OPTIMIZER}{key}.{names[parameter]}'] = value
                else:
                    others.setdefault(names[parameter], {})[key] = value
        rest = dict(self.optim_wrapper.state_dict(), state=others)
        rest['names'] = [[names[one] for one in group['params']] for group in optimizer.param_groups]
        return tensors, rest

    def _read_states(self, names: dict, parameters: list[nn.Parameter], others: dict) -> dict[int, dict]:
        """Optimizer states of the checkpoint, by the place of their parameters."""
        assert self._loaded is not None
        states: dict[int, dict] = {index: dict(others.get(names[one], {})) for index, one in enumerate(parameters)}
        index_of = {names[one]: index for index, one in enumerate(parameters)}
        targets: dict[str, Tensor] = {}
        for full, found in self._loaded.tensors.items():
            if full.startswith(OPTIMIZER):
                key, _, name = full.removeprefix(OPTIMIZER).partition('.')
                parameter = parameters[index_of[name]]
                if found.shape == parameter.shape:
                    target = torch.zeros_like(parameter, dtype=found.dtype, requires_grad=False)
                else:
                    target = torch.zeros(found.shape, dtype=found.dtype)
                targets[full] = states[index_of[name]][key] = target
        self._loaded.load(targets)
        return {index: values for index, values in states.items() if values}


def _stop_process_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _share(module: nn.Module, device: torch.device) -> None:
    """Give all processes the main process' weights and buffers that are not sharded yet, on the device."""
    tensors = [*module.parameters(), *module.buffers()]
    for tensor in dict.fromkeys(one for one in tensors if not isinstance(one, DTensor)):
        # Other processes do not read their files.
        data = tensor.data.to(device) if is_main_process() else torch.empty_like(tensor.data, device=device)
        if get_world_size() > 1 and data.numel():
            # As bytes: gloo does not know all dtypes.
            whole = data.contiguous()
            broadcast(whole.reshape(-1).view(torch.uint8))
            data = whole
        tensor.data = data


def _reach_backward(layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    """Let a layer of a language model run backward on every process, also below the first weight that trains.

    Otherwise the input has a gradient only on processes whose batch has images and whose projector trains. They would
    gather and reduce layers that the others do not, or at another time, and all would wait forever.
    """
    tensors = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
    if not torch.is_grad_enabled() or any(one.requires_grad for one in tensors):
        return None
    if args:
        return (args[0].detach().requires_grad_(), *args[1:]), kwargs
    return args, kwargs | dict(hidden_states=kwargs['hidden_states'].detach().requires_grad_())


def _cast(model: nn.Module, dtypes: dict[nn.Parameter, torch.dtype]) -> None:
    """Cast shards; the parameters are replaced, since the data of a shard cannot be."""
    cast: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter in dtypes:
                if parameter not in cast:
                    value = parameter.detach().to(dtypes[parameter])
                    cast[parameter] = nn.Parameter(value, requires_grad=parameter.requires_grad)
                setattr(module, name, cast[parameter])


def _shard_loaded(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Shard whole tensors that a module is about to load."""
    for name, parameter in module._parameters.items():
        if isinstance(parameter, DTensor) and f'{prefix}{name}' in state_dict:
            state_dict[f'{prefix}{name}'] = _like(state_dict[f'{prefix}{name}'], parameter)


def _like(value: Any, parameter: Tensor) -> Any:
    """A whole tensor of the shape of a sharded one, sharded as that; other values as they are."""
    if not isinstance(value, Tensor) or isinstance(value, DTensor) or not isinstance(parameter, DTensor):
        return value
    if value.shape != parameter.shape or not value.ndim:
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, each once; those of a sharded model as shards."""
    _reshard(model)
    found: dict[str, Tensor] = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                found[f'{prefix}.{name}' if prefix else name] = buffer
    return found


def _tied_names(model: nn.Module) -> dict[str, str]:
    """Further names of parameters that have several, each with the name in :func:`_named_tensors`."""
    first = {parameter: name for name, parameter in model.named_parameters()}
    names = model.named_parameters(remove_duplicate=False)
    return {name: first[parameter] for name, parameter in names if name != first[parameter]}


def _reshard(model: nn.Module) -> None:
    """Shard what is gathered, such as the root after a validation."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
