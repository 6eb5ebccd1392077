// The program's own headers, which are C.
#pragma once

extern "C" {
#include "base/error.h"
#include "base/file.h"
#include "base/system.h"
#include "engine/plugin.h"
#include "model/blocks.h"
}
