/* Stands in for libnvinfer, libnvinfer_plugin and libnvonnxparser: what TensorRT's Python bindings
 * ask for on import, and nothing behind it. Enums, classes and plugin decorators work; there is no
 * builder, runtime, parser or registry. */
#include <stdbool.h>
#include <stddef.h>

#define NOTHING(name) \
    void* name(void) { return NULL; }

NOTHING(createInferBuilder_INTERNAL)
NOTHING(createInferRefitter_INTERNAL)
NOTHING(createInferRuntime_INTERNAL)
NOTHING(createNvOnnxParser_INTERNAL)
NOTHING(createNvOnnxParserRefitter_INTERNAL)
NOTHING(getBuilderPluginRegistry)
NOTHING(getPluginRegistry)
NOTHING(getLogger)

int getNvOnnxParserVersion(void) { return 0; }
int getInferLibVersion(void) { return 0; }
bool initLibNvInferPlugins(void* logger, const char* space) { return logger != space || true; }
