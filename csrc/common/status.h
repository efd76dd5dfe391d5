// status.h - the one way native code reports failure. Nothing in csrc exits, aborts or prints.
#pragma once
#include <string>
#include <utility>

namespace mla {

/// The codes that native code can produce; error_code() gives the name TypeScript sees.
enum class Code {
  kOk,
  kInvalidArg,
  kDisposed,
  kState,
  kOutOfMemory,
  kOutOfDeviceMemory,
  kNoDevice,
  kDeviceUnusable,
  kDriverTooOld,
  kDeviceLost,
  kUnsupported,
  kFile,
  kBackend,
  kInternal,
};

constexpr const char* error_code(Code c) {
  switch (c) {
    case Code::kOk: return "OK";
    case Code::kInvalidArg: return "ERR_INVALID_ARG";
    case Code::kDisposed: return "ERR_DISPOSED";
    case Code::kState: return "ERR_STATE";
    case Code::kOutOfMemory: return "ERR_OUT_OF_MEMORY";
    case Code::kOutOfDeviceMemory: return "ERR_OUT_OF_DEVICE_MEMORY";
    case Code::kNoDevice: return "ERR_NO_DEVICE";
    case Code::kDeviceUnusable: return "ERR_DEVICE_UNUSABLE";
    case Code::kDriverTooOld: return "ERR_DRIVER_TOO_OLD";
    case Code::kDeviceLost: return "ERR_DEVICE_LOST";
    case Code::kUnsupported: return "ERR_UNSUPPORTED";
    case Code::kFile: return "ERR_FILE";
    case Code::kBackend: return "ERR_BACKEND";
    case Code::kInternal: return "ERR_INTERNAL";
  }
  return "ERR_INTERNAL";
}

/// Success, or a code and one sentence with the values involved. `sticky` marks a fault after which the device is lost.
struct [[nodiscard]] Status {
  Code code = Code::kOk;
  std::string text;
  bool sticky = false;

  bool ok() const { return code == Code::kOk; }
  static Status Ok() { return {}; }
  static Status Error(Code c, std::string t) { return {c, std::move(t), c == Code::kDeviceLost}; }
};

}  // namespace mla

/// Returns from the calling function with the first failure.
#define MLA_RETURN_IF_ERROR(expr)              \
  do {                                         \
    ::mla::Status mla_status_ = (expr);        \
    if (!mla_status_.ok()) return mla_status_; \
  } while (0)
