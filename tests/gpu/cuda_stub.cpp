// What PyTorch asks of a CUDA device besides kernels, answered without a driver: fake tensors on "cuda" then have
// backward passes, too. Works in builds of PyTorch with and without CUDA.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::Stream;

// One device with one stream; its events never wait.
struct Guard final : public c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  static Device device() { return Device(DeviceType::CUDA, 0); }
  static Stream stream() { return Stream(Stream::DEFAULT, device()); }
  Device exchangeDevice(Device) const override { return device(); }
  Device getDevice() const override { return device(); }
  Stream getStream(Device) const noexcept override { return stream(); }
  Stream exchangeStream(Stream) const noexcept override { return stream(); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const Stream&) const override {}
};

struct Hooks final : public at::CUDAHooksInterface {
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasCuDNN() const override { return true; }
  bool compiledWithCuDNN() const override { return true; }
  long versionCuDNN() const override { return 92400; }
  long versionRuntimeCuDNN() const override { return 92400; }
  double batchnormMinEpsilonCuDNN() const override { return 0.0; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  bool supportsBFloat16ConvolutionWithCuDNNv8() const override { return true; }
};

Guard guard;
Hooks hooks;
const c10::impl::DeviceGuardImplInterface* real_guard = nullptr;
void* real_methods = nullptr;

// The hooks are one object behind a const reference. Its table of virtual methods is exchanged.
void*& methods(const at::CUDAHooksInterface& object) {
  return *reinterpret_cast<void**>(const_cast<at::CUDAHooksInterface*>(&object));
}

auto& registered_guard() {
  return c10::impl::device_guard_impl_registry[static_cast<size_t>(DeviceType::CUDA)];
}

} // namespace

extern "C" void install() {
  real_guard = registered_guard().exchange(&guard);
  real_methods = methods(at::detail::getCUDAHooks());
  methods(at::detail::getCUDAHooks()) = methods(hooks);
}

extern "C" void remove_stub() {
  registered_guard().store(real_guard);
  methods(at::detail::getCUDAHooks()) = real_methods;
}
