// What a session asked for before it registered the library, and which ONNX Runtime it runs in.
#pragma once

#include <onnxruntime_c_api.h>

#include "kvshare/status.h"

namespace kvshare::ort {

// Defined once a library: false in libkvshare_ort.so, true in libkvshare_dropin.so.
bool DropInByDefault();

struct HostVersion {
  int major = 0;
  int minor = 0;
  bool AtLeast(int want_major, int want_minor) const {
    return major > want_major || (major == want_major && minor >= want_minor);
  }
};

// Parses "1.32.0"; zeros where it is no version.
HostVersion ParseHostVersion(const char* text);

struct SessionConfig {
  bool gqa = false;          // replace com.microsoft.GroupQueryAttention
  bool attention = false;    // replace ai.onnx.Attention
  bool lower_right = false;  // kvshare.causal_alignment=lower_right: drop-in Attention without past, as ORT <= 1.27
  HostVersion host;

  friend bool operator<(const SessionConfig& a, const SessionConfig& b) { return a.Bits() < b.Bits(); }
  // "off", "gqa", "attention" or "gqa+attention".
  const char* DropInText() const;

 private:
  // Configurations are told apart within one host.
  int Bits() const { return (gqa ? 1 : 0) | (attention ? 2 : 0) | (lower_right ? 4 : 0); }
};

// Reads the session entries kvshare.drop_in and kvshare.causal_alignment, and the environment's KVSHARE_DROP_IN, which
// has the values of the entry and counts before it.
// kInvalidInput for a value that is none of the accepted ones.
Result<SessionConfig> ReadSessionConfig(const OrtApi& api, const OrtSessionOptions* options, HostVersion host);

}  // namespace kvshare::ort
