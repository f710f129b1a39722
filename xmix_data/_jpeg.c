/* Windows of JPEG images, row by row, by libjpeg-turbo.

   Its TurboJPEG interface decodes whole images only. A crop needs neither the columns beside it
   nor the rows below it, and rows that are used while they are in the first-level cache need no
   second trip through memory. The accurate DCT and smooth chroma upsampling are used, as by
   Pillow: a window's pixels are bit for bit those of the whole image.

   One decoder belongs to one thread at a time. Addresses are 64-bit integers, so that numba can
   call these functions. */

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include <jerror.h>

#ifndef LIBJPEG_TURBO_VERSION
#error "this libjpeg decodes whole images only: libjpeg-turbo is needed"
#endif

enum { OK, DAMAGED, WRONG_SIZE };

/* Smooth upsampling looks at the chroma sample beside, which is up to two pixels away. */
#define MARGIN 2

/* A scan may be a few bytes long and costs a pass over the whole image; encoders make about ten. */
#define MOST_SCANS 500

#if JPEG_LIB_VERSION >= 70
#define DCT_SIZE(component) ((component)->DCT_h_scaled_size)
#define LEAST_DCT_SIZE(jpeg) ((jpeg)->min_DCT_h_scaled_size)
#else
#define DCT_SIZE(component) ((component)->DCT_scaled_size)
#define LEAST_DCT_SIZE(jpeg) ((jpeg)->min_DCT_scaled_size)
#endif

typedef struct {
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    jmp_buf failed;
    int ends_well; /* the stream ends with the marker that must end it */
    int forgives;  /* bytes between the parts of the header are no damage */
    char message[JMSG_LENGTH_MAX];
} Decoder;

static void on_error(j_common_ptr jpeg)
{
    Decoder *decoder = jpeg->client_data;
    jpeg->err->format_message(jpeg, decoder->message);
    longjmp(decoder->failed, 1);
}

/* Warnings have level -1; the first is what went wrong, the others follow from it. */
static void on_message(j_common_ptr jpeg, int level)
{
    Decoder *decoder = jpeg->client_data;
    if (decoder->forgives && jpeg->err->msg_code == JWRN_EXTRANEOUS_DATA)
        return;
    if (level == -1 && jpeg->err->num_warnings++ == 0)
        jpeg->err->format_message(jpeg, decoder->message);
}

/* Called every few rows of every scan: what is damaged, or asks for work without end, ends here. */
static void on_progress(j_common_ptr jpeg)
{
    Decoder *decoder = jpeg->client_data;
    if (jpeg->err->num_warnings)
        longjmp(decoder->failed, 1);
    if (((j_decompress_ptr)jpeg)->input_scan_number > MOST_SCANS) {
        snprintf(decoder->message, sizeof decoder->message, "more than %d scans", MOST_SCANS);
        longjmp(decoder->failed, 1);
    }
}

static void no_output(j_common_ptr jpeg) { (void)jpeg; }

int64_t xmix_jpeg_new(void)
{
    Decoder *decoder = calloc(1, sizeof *decoder);
    if (decoder == NULL)
        return 0;
    decoder->jpeg.err = jpeg_std_error(&decoder->errors);
    decoder->errors.error_exit = on_error;
    decoder->errors.emit_message = on_message;
    decoder->errors.output_message = no_output;
    decoder->jpeg.client_data = decoder;
    decoder->progress.progress_monitor = on_progress;
    if (setjmp(decoder->failed)) {
        free(decoder);
        return 0;
    }
    jpeg_create_decompress(&decoder->jpeg);
    return (int64_t)(intptr_t)decoder;
}

void xmix_jpeg_free(int64_t handle)
{
    Decoder *decoder = (Decoder *)(intptr_t)handle;
    jpeg_destroy_decompress(&decoder->jpeg);
    free(decoder);
}

/* What went wrong in the last image, in libjpeg's words. */
const char *xmix_jpeg_message(int64_t handle)
{
    return ((Decoder *)(intptr_t)handle)->message;
}

static int32_t status_of(const Decoder *decoder)
{
    return decoder->errors.num_warnings ? DAMAGED : OK;
}

/* Begin a stream, whoever calls this has set `failed`. */
static void read_header(Decoder *decoder, int64_t data, int64_t size, int forgives)
{
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;
    const unsigned char *bytes = (const unsigned char *)(intptr_t)data;

    decoder->errors.num_warnings = 0;
    decoder->message[0] = 0;
    decoder->ends_well = size >= 2 && bytes[size - 2] == 0xFF && bytes[size - 1] == JPEG_EOI;
    /* Made anew: libjpeg keeps tables for streams without, and an image that lacks its own would
       be decoded with those of whatever image came before. */
    jpeg_destroy_decompress(jpeg);
    jpeg_create_decompress(jpeg);
    jpeg->progress = &decoder->progress;
    jpeg_mem_src(jpeg, bytes, (unsigned long)size);
    decoder->forgives = forgives;
    jpeg_read_header(jpeg, TRUE);
    decoder->forgives = 0;
}

/* Whether a progressive stream sends every bit. Where one does not, libjpeg guesses from the blocks
   around, and a window's pixels would depend on the window. */
static int is_complete(const struct jpeg_decompress_struct *jpeg)
{
    if (jpeg->progressive_mode)
        for (int component = 0; component < jpeg->num_components; component++)
            for (int frequency = 0; frequency < DCTSIZE2; frequency++)
                if (jpeg->coef_bits[component][frequency] != 0)
                    return 0;
    return 1;
}

/* Whether libjpeg decodes a window as it decodes the whole image. At a fraction of the size it makes
   the blocks of subsampled chroma larger, where that is a whole factor in both directions. If an
   expansion is left to do (2x4 or 4x2 sampling), jpeg_crop_scanline and jpeg_skip_scanlines of
   libjpeg-turbo 2 count with the size before: samples are read that nobody wrote. */
static int makes_windows(const struct jpeg_decompress_struct *jpeg)
{
    for (int i = 0; i < jpeg->num_components; i++) {
        const jpeg_component_info *component = jpeg->comp_info + i;
        int size = DCT_SIZE(component), least = LEAST_DCT_SIZE(jpeg);
        if (size != least && (component->h_samp_factor * size != jpeg->max_h_samp_factor * least ||
                              component->v_samp_factor * size != jpeg->max_v_samp_factor * least))
            return 0;
    }
    return 1;
}

/* Decode rows that nobody wants, with everything that depends on them. */
static void pass_over(struct jpeg_decompress_struct *jpeg, JDIMENSION stop)
{
    JSAMPROW row =
        jpeg->mem->alloc_large((j_common_ptr)jpeg, JPOOL_IMAGE,
                               (size_t)jpeg->output_width * jpeg->output_components);
    while (jpeg->output_scanline < stop)
        jpeg_read_scanlines(jpeg, &row, 1);
}

/* Begin a window of an image: `columns` pixels from `left`, rows from `top` on, in an image that
   is decoded at 1/`shrink` of its size (1, 2, 4 or 8).

   `height` and `width` are what the image must have. `layout` receives two numbers: the bytes of
   a decoded row, which is a little wider than the window, and where in it the window begins. */
int32_t xmix_jpeg_open(int64_t handle, int64_t data, int64_t size, int64_t height, int64_t width,
                       int64_t shrink, int64_t top, int64_t left, int64_t columns, int64_t layout)
{
    Decoder *decoder = (Decoder *)(intptr_t)handle;
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;
    int64_t *at = (int64_t *)(intptr_t)layout;

    if (setjmp(decoder->failed)) {
        jpeg_abort_decompress(jpeg);
        return DAMAGED;
    }
    read_header(decoder, data, size, 0);
    if (jpeg->image_height != height || jpeg->image_width != width) {
        snprintf(decoder->message, sizeof decoder->message,
                 "the JPEG is %ux%u, the index says %dx%d", jpeg->image_width, jpeg->image_height,
                 (int)width, (int)height);
        jpeg_abort_decompress(jpeg);
        return WRONG_SIZE;
    }
    jpeg->out_color_space = JCS_RGB;
    jpeg->dct_method = JDCT_ISLOW;
    jpeg->scale_num = 1;
    jpeg->scale_denom = (unsigned)shrink;
    jpeg_start_decompress(jpeg);
    if (!is_complete(jpeg)) {
        if (jpeg->err->num_warnings == 0)
            strcpy(decoder->message, "a scan of the progressive JPEG is missing");
        jpeg_abort_decompress(jpeg);
        return DAMAGED;
    }

    if (!makes_windows(jpeg)) {
        pass_over(jpeg, (JDIMENSION)top);
        at[0] = (int64_t)jpeg->output_width * 3;
        at[1] = left * 3;
        return status_of(decoder);
    }
    /* Where a component has less than three samples across, its upsampling is no smooth one. */
    JDIMENSION least = 3 * (JDIMENSION)jpeg->max_h_samp_factor;
    JDIMENSION from = left > MARGIN ? (JDIMENSION)left - MARGIN : 0;
    JDIMENSION to = (JDIMENSION)(left + columns + MARGIN);
    if (to < from + least)
        to = from + least;
    if (to > jpeg->output_width)
        to = jpeg->output_width;
    if (to < from + least)
        from = to > least ? to - least : 0;
    JDIMENSION span = to - from;
    if (span < jpeg->output_width)
        jpeg_crop_scanline(jpeg, &from, &span);
    if (top > 0)
        jpeg_skip_scanlines(jpeg, (JDIMENSION)top);
    at[0] = (int64_t)jpeg->output_width * 3;
    at[1] = (left - from) * 3;
    return status_of(decoder);
}

/* Begin a whole image of any size, at 1/`shrink` of it, for a conversion: RGB, or CMYK as it is
   stored. `layout` receives height, width and channels of what `xmix_jpeg_read` gives. */
int32_t xmix_jpeg_open_whole(int64_t handle, int64_t data, int64_t size, int64_t shrink,
                             int64_t layout)
{
    Decoder *decoder = (Decoder *)(intptr_t)handle;
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;
    int64_t *shape = (int64_t *)(intptr_t)layout;

    if (setjmp(decoder->failed)) {
        jpeg_abort_decompress(jpeg);
        return DAMAGED;
    }
    read_header(decoder, data, size, 1);
    jpeg->out_color_space = jpeg->num_components == 4 ? JCS_CMYK : JCS_RGB;
    jpeg->dct_method = JDCT_ISLOW;
    jpeg->scale_num = 1;
    jpeg->scale_denom = (unsigned)shrink;
    jpeg_start_decompress(jpeg);
    shape[0] = jpeg->output_height;
    shape[1] = jpeg->output_width;
    shape[2] = jpeg->output_components;
    return status_of(decoder);
}

/* Decode the next `count` rows to `rows`, one after the other. */
int32_t xmix_jpeg_read(int64_t handle, int64_t rows, int64_t count)
{
    Decoder *decoder = (Decoder *)(intptr_t)handle;
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;
    size_t row_bytes = (size_t)jpeg->output_width * jpeg->output_components;
    JDIMENSION first = jpeg->output_scanline;

    if (setjmp(decoder->failed)) {
        jpeg_abort_decompress(jpeg);
        return DAMAGED;
    }
    while (jpeg->output_scanline - first < count) {
        JSAMPROW row = (JSAMPROW)(intptr_t)rows + (jpeg->output_scanline - first) * row_bytes;
        if (jpeg_read_scanlines(jpeg, &row, 1) == 0)
            return DAMAGED;
    }
    return status_of(decoder);
}

/* End the image. What lies below the window is read only where the stream seems cut off, or, to
   see how it ends, where nothing does. */
int32_t xmix_jpeg_close(int64_t handle)
{
    Decoder *decoder = (Decoder *)(intptr_t)handle;
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;

    if (setjmp(decoder->failed)) {
        jpeg_abort_decompress(jpeg);
        return DAMAGED;
    }
    if (!decoder->ends_well || jpeg->output_scanline == jpeg->output_height) {
        /* Skipping to the end would not look at what it skips. */
        pass_over(jpeg, jpeg->output_height);
        jpeg_finish_decompress(jpeg);
    }
    jpeg_abort_decompress(jpeg);
    return status_of(decoder);
}
