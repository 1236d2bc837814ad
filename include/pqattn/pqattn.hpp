// SPDX-License-Identifier: MIT
// Umbrella header: the whole library except the opt-in parts (interop/eigen.hpp, study/, JSON readers).
#pragma once

#include "config.hpp"
#include "version.hpp"

#include "core/executor.hpp"
#include "core/growable.hpp"
#include "core/half.hpp"
#include "core/memory.hpp"
#include "core/progress.hpp"
#include "core/random.hpp"
#include "core/status.hpp"
#include "core/view.hpp"

#include "quant/code_rows.hpp"
#include "quant/codebook.hpp"
#include "quant/codebook_rounding.hpp"
#include "quant/geometry.hpp"
#include "quant/rope.hpp"
#include "quant/value_rotation.hpp"

#include "bank/bank.hpp"
#include "bank/host/host_bank.hpp"

#include "train/codebook_trainer.hpp"
#include "train/importance.hpp"
#include "train/kmeans.hpp"

#include "encode/encode.hpp"

#include "attend/attend.hpp"
#include "attend/attention_mass.hpp"
#include "attend/partial_state.hpp"
#include "attend/score_modifiers.hpp"

#include "cache/apply_policy.hpp"
#include "cache/attend_scratch.hpp"
#include "cache/batch.hpp"
#include "cache/cache_config.hpp"
#include "cache/head_cache.hpp"
#include "cache/layer_cache.hpp"
#include "cache/page_pool.hpp"
#include "cache/presets.hpp"
#include "cache/sequence.hpp"
#include "cache/snapshot.hpp"
