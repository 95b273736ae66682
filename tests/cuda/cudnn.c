// What of cuDNN has to answer with more than 0: searches find one algorithm, which needs no memory.
// The header's own declarations are renamed away, as their arguments do not matter here.
#include <cuda_runtime_api.h>
#include <stddef.h>
#include <string.h>
#define cudnnFindConvolutionForwardAlgorithmEx hidden1
#define cudnnFindConvolutionBackwardDataAlgorithmEx hidden2
#define cudnnFindConvolutionBackwardFilterAlgorithmEx hidden3
#define cudnnGetConvolutionForwardWorkspaceSize hidden4
#define cudnnGetConvolutionBackwardDataWorkspaceSize hidden5
#define cudnnGetConvolutionBackwardFilterWorkspaceSize hidden6
#include <cudnn.h>
#undef cudnnFindConvolutionForwardAlgorithmEx
#undef cudnnFindConvolutionBackwardDataAlgorithmEx
#undef cudnnFindConvolutionBackwardFilterAlgorithmEx
#undef cudnnGetConvolutionForwardWorkspaceSize
#undef cudnnGetConvolutionBackwardDataWorkspaceSize
#undef cudnnGetConvolutionBackwardFilterWorkspaceSize

const char *cudnnGetErrorString(cudnnStatus_t status) { return "stand-in"; }

#define FIND(name, result_type)                                                                  \
    int name(void *handle, void *d1, void *p1, void *d2, void *p2, void *convolution, void *d3,  \
             void *p3, int wanted, int *found, result_type *result, void *space, size_t size) {  \
        *found = 1;                                                                              \
        memset(result, 0, sizeof *result);                                                       \
        return 0;                                                                                \
    }
FIND(cudnnFindConvolutionForwardAlgorithmEx, cudnnConvolutionFwdAlgoPerf_t)
FIND(cudnnFindConvolutionBackwardDataAlgorithmEx, cudnnConvolutionBwdDataAlgoPerf_t)
FIND(cudnnFindConvolutionBackwardFilterAlgorithmEx, cudnnConvolutionBwdFilterAlgoPerf_t)

#define SPACE(name)                                                                              \
    int name(void *handle, void *d1, void *d2, void *convolution, void *d3, int algorithm,       \
             size_t *size) {                                                                     \
        *size = 0;                                                                               \
        return 0;                                                                                \
    }
SPACE(cudnnGetConvolutionForwardWorkspaceSize)
SPACE(cudnnGetConvolutionBackwardDataWorkspaceSize)
SPACE(cudnnGetConvolutionBackwardFilterWorkspaceSize)
