// A device whose memory is the CPU's and refuses to meet the CPU's: what an accelerator refuses is refused
// without one. Every operation is done by the CPU on the same bytes; see __init__.py.
#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <vector>

namespace {

constexpr auto kType = c10::DeviceType::PrivateUse1;
const c10::Device kDevice(kType, 0);

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = nullptr;
    if (bytes > 0 && posix_memalign(&memory, 64, bytes) != 0) throw std::bad_alloc();
    return {memory, memory, &std::free, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Memory memory;

bool is_here(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == kType; }

// The same bytes under another device; they live as long as either of the two.
c10::Storage under(c10::Device device, const c10::Storage& storage, c10::Allocator* allocator) {
  auto free = [](void* kept) { delete static_cast<c10::Storage*>(kept); };
  c10::DataPtr bytes(storage.data_ptr().get(), new c10::Storage(storage), free, device);
  return c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), storage.nbytes(), std::move(bytes), allocator, /*resizable=*/true);
}

void shape(const at::Tensor& tensor, const at::Tensor& like) {
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
}

at::Tensor on_cpu(const at::Tensor& tensor) {
  if (!is_here(tensor)) return tensor;
  auto storage = under(c10::Device(c10::kCPU), tensor.storage(), c10::GetCPUAllocator());
  auto same = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  shape(same, tensor);
  if (tensor.is_conj()) same._set_conj(true);
  if (tensor.is_neg()) same._set_neg(true);
  return same;
}

at::Tensor back_here(const at::Tensor& tensor) {
  if (!tensor.defined()) return tensor;
  auto same = at::detail::make_tensor<c10::TensorImpl>(
      under(kDevice, tensor.storage(), &memory), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
      tensor.dtype());
  shape(same, tensor);
  return same;
}

at::Tensor view_of(const at::Tensor& base, const at::Tensor& like) {
  auto same = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(base.storage()), base.key_set(), like.dtype());
  shape(same, like);
  return same;
}

void refuse(const std::string& operation) {
  TORCH_CHECK(
      false, "Expected all tensors to be on the same device, but found at least two devices, ", kDevice,
      " and cpu! (", operation, ")");
}

template <typename Visit>
void each_tensor(const c10::IValue& value, Visit visit) {
  if (value.isTensor()) {
    visit(value.toTensor());
  } else if (value.isList()) {
    for (const c10::IValue& item : value.toListRef())
      if (item.isTensor()) visit(item.toTensor());
  }
}

template <typename Change>
c10::IValue with_tensors(const c10::IValue& value, Change change) {
  if (value.isTensor()) return change(value.toTensor());
  if (value.isTensorList()) {
    c10::List<at::Tensor> changed;
    for (const at::Tensor& tensor : value.toTensorVector()) changed.push_back(change(tensor));
    return changed;
  }
  bool has_tensors = false;
  each_tensor(value, [&](const at::Tensor&) { has_tensors = true; });
  if (!has_tensors) return value;
  c10::List<std::optional<at::Tensor>> changed;
  for (const c10::IValue& item : value.toListRef())
    changed.push_back(item.isTensor() ? std::optional<at::Tensor>(change(item.toTensor())) : std::nullopt);
  return changed;
}

struct Argument {
  at::Tensor here, cpu;
  const void* bytes;
};

// GPUs read numbers without axes and indices from either memory, and CTC its lengths.
void refuse_a_mixture(const c10::FunctionSchema& schema, const torch::jit::Stack& stack) {
  const auto& arguments = schema.arguments();
  const size_t first = stack.size() - arguments.size();
  bool here = false, cpu = false;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto& value = stack[first + i];
    const auto* alias = arguments[i].alias_info();
    const bool is_written = alias != nullptr && alias->isWrite();
    const bool may_be_either =
        arguments[i].name() == "indices" || (schema.name() == "aten::_ctc_loss" && i > 1);
    each_tensor(value, [&](const at::Tensor& tensor) {
      here = here || is_here(tensor);
      const bool has_axes = tensor.defined() && tensor.dim() > 0;
      cpu = cpu || (tensor.defined() && !is_here(tensor) && (has_axes || is_written) && !may_be_either);
    });
    here = here || (value.isDevice() && value.toDevice().type() == kType);
    cpu = cpu || value.isGenerator();  // there are none but the CPU's
  }
  if (here && cpu) refuse(schema.name());
  TORCH_CHECK(here, schema.name(), " came here and has nothing that lies here");
}

// Any operation: arguments to the CPU, its kernel, results back, views as views of what they were made of.
void by_cpu(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  const auto& schema = operation.schema();
  refuse_a_mixture(schema, *stack);
  std::vector<Argument> moved;
  const auto move = [&](const at::Tensor& tensor) {
    if (!is_here(tensor)) return tensor;
    for (const auto& one : moved)
      if (one.here.is_same(tensor)) return one.cpu;
    moved.push_back({tensor, on_cpu(tensor), tensor.storage().data_ptr().get()});
    return moved.back().cpu;
  };
  for (size_t i = stack->size() - schema.arguments().size(); i < stack->size(); ++i) {
    auto& value = (*stack)[i];
    value = value.isDevice() && value.toDevice().type() == kType ? c10::IValue(c10::Device(c10::kCPU))
                                                                  : with_tensors(value, move);
  }
  {
    c10::impl::ExcludeDispatchKeyGuard without_autograd(c10::autograd_dispatch_keyset);
    operation.callBoxed(stack);
  }
  // Outputs may have grown; unlike on a real device, what else looked at their old bytes goes on to.
  for (const auto& [here, cpu, bytes] : moved) {
    if (cpu.storage().data_ptr().get() != bytes || cpu.storage().nbytes() != here.storage().nbytes())
      here.unsafeGetTensorImpl()->set_storage_keep_dtype(under(kDevice, cpu.storage(), &memory));
    if (cpu.sizes() != here.sizes() || cpu.strides() != here.strides()) shape(here, cpu);
  }
  const auto bring_back = [&](const at::Tensor& tensor) {
    if (!tensor.defined() || tensor.device().type() != c10::kCPU) return tensor;
    for (const auto& one : moved)
      if (one.cpu.is_same(tensor)) return one.here;
    const void* bytes = tensor.storage().data_ptr().get();
    for (const auto& one : moved)
      if (bytes != nullptr && bytes == one.cpu.storage().data_ptr().get()) return view_of(one.here, tensor);
    return back_here(tensor);
  };
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); ++i)
    (*stack)[i] = with_tensors((*stack)[i], bring_back);
}

// Between the two memories, which nothing else may cross.
at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

at::Tensor convolution(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
    at::IntArrayRef output_padding, int64_t groups) {
  const bool has_bias = bias.has_value() && bias->defined();
  if (!is_here(x) || !is_here(weight) || (has_bias && !is_here(*bias))) refuse("aten::convolution");
  c10::impl::ExcludeDispatchKeyGuard without_autograd(c10::autograd_dispatch_keyset);
  const auto bias_on_cpu = has_bias ? std::optional<at::Tensor>(on_cpu(*bias)) : std::nullopt;
  return back_here(at::convolution(
      on_cpu(x), on_cpu(weight), bias_on_cpu, stride, padding, dilation, transposed, output_padding, groups));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& upstream, const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding,
    int64_t groups, std::array<bool, 3> wanted) {
  c10::impl::ExcludeDispatchKeyGuard without_autograd(c10::autograd_dispatch_keyset);
  const std::vector<int64_t> bias{transposed ? weight.size(1) * groups : weight.size(0)};
  const auto [dx, dweight, dbias] = at::convolution_backward(
      on_cpu(upstream), on_cpu(x), on_cpu(weight), at::IntArrayRef(bias), stride, padding, dilation,
      transposed, output_padding, groups, wanted);
  return {back_here(dx), back_here(dweight), back_here(dbias)};
}

at::Tensor& set_storage(at::Tensor& tensor, at::Storage storage) {
  if (storage.device().type() != kType) refuse("aten::set_");
  const std::vector<int64_t> size{int64_t(storage.nbytes() / tensor.element_size())}, stride{1};
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_sizes_and_strides(at::IntArrayRef(size), at::IntArrayRef(stride), 0);
  return tensor;
}

at::Tensor& set_storage_at(
    at::Tensor& tensor, at::Storage storage, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  if (storage.device().type() != kType) refuse("aten::set_");
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_sizes_and_strides(size, stride, offset);
  return tensor;
}

}  // namespace

REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &memory);

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&by_cpu>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("_copy_from", TORCH_FN(copy_from));
  library.impl("convolution_overrideable", TORCH_FN(convolution));
  library.impl("convolution_backward_overrideable", TORCH_FN(convolution_backward));
  library.impl("set_.source_Storage", TORCH_FN(set_storage));
  library.impl("set_.source_Storage_storage_offset", TORCH_FN(set_storage_at));
}

// Conjugates are computed where they are copied.
TORCH_LIBRARY_IMPL(aten, Conjugate, library) {
  library.impl("_copy_from", torch::CppFunction::makeFallthrough());
}
TORCH_LIBRARY_IMPL(aten, Negative, library) {
  library.impl("_copy_from", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFallthrough());
}

namespace at::autocast {
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
#define IN_FEWER_BITS(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
  AT_FORALL_LOWER_PRECISION_FP(IN_FEWER_BITS)
#define IN_FLOAT32(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
  AT_FORALL_FP32(IN_FLOAT32)
#define OUT_IN_FLOAT32(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
  AT_FORALL_FP32_SET_OPT_DTYPE(OUT_IN_FLOAT32)
  AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE(KERNEL_DIFFERENT_REDISPATCH_SIGNATURE_PRIVATEUSEONE)
#define IN_THE_WIDEST(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
  AT_FORALL_PROMOTE(IN_THE_WIDEST)
}
}  // namespace at::autocast
