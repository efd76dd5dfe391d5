// launches.h - what all kernel launches share, on the host's side: whether kernels may overlap, and which there were.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace mla::cuda {

/// Whether kernels that this thread launches start only when the one before has ended. A device's kernels all come from
/// its one thread, so this is a property of the device that the thread serves.
inline constinit thread_local bool serial_launches = false;

/// Whether this thread has launched a kernel, since it last set this to false, that lets its successor start only after
/// its own wait (pdl.cuh): all but the eager ones.
inline constinit thread_local bool late_trigger = false;

/// Kernels of the library, at most.
constexpr size_t kMostKernels = 1024;
/// Those that this process has launched, in no order; a null is an empty place. Tests ask whether they left one out.
inline constinit std::atomic<const void*> launched_kernels[kMostKernels]{};

/// Remembers that a kernel has been launched. From any thread; a few nanoseconds.
inline void note_launch(const void* kernel) noexcept {
  const auto first = static_cast<size_t>(reinterpret_cast<uintptr_t>(kernel) >> 4);
  for (size_t i = 0; i < kMostKernels; ++i) {
    std::atomic<const void*>& place = launched_kernels[(first + i) % kMostKernels];
    const void* there = place.load(std::memory_order_relaxed);
    if (there == nullptr && place.compare_exchange_strong(there, kernel, std::memory_order_relaxed)) return;
    if (there == kernel) return;
  }
}

}  // namespace mla::cuda
