"""Attention on Hopper in which two neighbouring blocks of queries share the keys and values they load.

flash-attn-4's kernel for Hopper lets every thread block fetch all keys and values for itself. Here two thread
blocks with neighbouring queries of one head form a cluster: each fetches one half of every tile, and the
copy engine delivers it to both. That halves what moves between the L2 cache and the multiprocessors, and with
it the power that takes: a long clip runs at the card's power limit, where what costs less power runs faster.
Mathematics and order within a thread block are the library's: in equal tiles the results are the same bits.
Imported only on a GPU. Needs equally many heads of queries and keys; no mask.
"""

# The kernel language has no types that a checker understands:
# pyright: reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportIncompatibleMethodOverride=false, reportOptionalMemberAccess=false
# pyright: reportPrivateImportUsage=false
# ruff: noqa: N803, N806 - names of tensors are the library's

import functools
from collections.abc import Callable
from functools import partial

import cuda.bindings.driver as cuda
import cutlass
import torch
from cutlass import Float32, Int16, Int32, cute, pipeline
from cutlass.cute.nvgpu import cpasync
from cutlass.utils import LayoutEnum
from flash_attn.cute.block_info import BlockInfo
from flash_attn.cute.cute_dsl_utils import assume_tensor_aligned
from flash_attn.cute.flash_fwd_sm90 import FlashAttentionForwardSm90
from flash_attn.cute.mask import AttentionMask
from flash_attn.cute.pipeline import PipelineTmaAsync
from flash_attn.cute.seqlen_info import SeqlenInfoQK
from flash_attn.cute.tile_scheduler import SingleTileScheduler, TileSchedulerArguments
from flash_attn.cute.utils import compute_softmax_scale_log2
from quack import copy_utils, layout_utils, sm90_utils
from quack.compile_utils import make_fake_stream, make_fake_tensor

TILE = (128, 176)  # queries, keys; of 128 and 176 keys the faster, H100, 75,600 and 32,760 tokens
STAGES = 2  # buffers of keys, and of values
WARP_GROUP = 128  # threads that share a matrix instruction; one group loads, two multiply
REGISTERS = (240, 24)  # a thread: of those that multiply, of those that load
CLUSTER = 2  # thread blocks that share K and V; neighbours along the queries
EVERY_BLOCK = (1 << CLUSTER) - 1  # multicast mask: bit i is thread block i of the cluster


class MulticastForward(FlashAttentionForwardSm90):
    """Dense, unmasked attention forward with equal numbers of query and key heads."""

    def __init__(
        self,
        dtype: type[cutlass.Numeric],
        head_dim: int,
    ) -> None:
        super().__init__(dtype, head_dim, tile_m=TILE[0], tile_n=TILE[1], num_stages=STAGES)
        self.cluster_shape_mn = (CLUSTER, 1)
        # Everything the inherited mma() and epilogue() ask about.
        self.num_wg_mma = self.tile_m // 64
        self.num_threads_per_warp_group = WARP_GROUP
        self.num_mma_threads = self.num_epilogue_threads = WARP_GROUP * self.num_wg_mma
        self.num_threads = self.num_mma_threads + WARP_GROUP
        self.num_mma_regs, self.num_producer_regs = REGISTERS
        self.use_scheduler_barrier = True
        self.use_block_sparsity = False
        self.use_tma_Q = self.use_tma_O = True
        self.rescale_O_before_gemm = False
        self.sP_layout = None

    @cute.jit
    def __call__(
        self,
        mQ: cute.Tensor,
        mK: cute.Tensor,
        mV: cute.Tensor,
        mO: cute.Tensor,
        softmax_scale: Float32,
        stream: cuda.CUstream = None,
    ) -> None:
        """Launch on (batch, tokens, heads, head_dim) tensors."""
        mQ, mK, mV, mO = [
            layout_utils.select(assume_tensor_aligned(t), [1, 3, 2, 0]) for t in (mQ, mK, mV, mO)
        ]  # (tokens, head_dim, heads, batch)
        qo_tile, kv_tile = (self.tile_m, self.tile_hdim), (self.tile_n, self.tile_hdim)
        make_smem_layout = partial(sm90_utils.make_smem_layout, self.dtype, LayoutEnum.ROW_MAJOR)
        self.sQ_layout = self.sO_layout = make_smem_layout(qo_tile)
        self.sK_layout = self.sV_layout = make_smem_layout(kv_tile, self.num_stages)
        kv_tile_layout = cute.select(self.sK_layout, mode=[0, 1])
        self.q_bytes = cute.size_in_bytes(self.dtype, self.sQ_layout)
        self.kv_bytes = cute.size_in_bytes(self.dtype, kv_tile_layout)

        load_op, store_op = cpasync.CopyBulkTensorTileG2SOp(), cpasync.CopyBulkTensorTileS2GOp()
        shared_load_op = cpasync.CopyBulkTensorTileG2SMulticastOp()
        make_atom = cpasync.make_tiled_tma_atom
        atom_Q, mQ = make_atom(load_op, mQ, self.sQ_layout, qo_tile)
        atom_K, mK = make_atom(shared_load_op, mK, kv_tile_layout, kv_tile, CLUSTER)
        atom_V, mV = make_atom(shared_load_op, mV, kv_tile_layout, kv_tile, CLUSTER)
        atom_O, mO = make_atom(store_op, mO, self.sO_layout, qo_tile)

        scheduler = SingleTileScheduler.to_underlying_arguments(
            TileSchedulerArguments(
                num_block=cute.ceil_div(cute.size(mQ.shape[0]), self.tile_m),
                num_head=cute.size(mQ.shape[2]),
                num_batch=cute.size(mQ.shape[3]),
                num_splits=1,
                seqlen_k=cute.size(mK.shape[0]),
                headdim=mQ.shape[1],
                headdim_v=mV.shape[1],
                total_q=cute.size(mQ.shape[0]) * cute.size(mQ.shape[3]),
                tile_shape_mn=(self.tile_m, self.tile_n),
                cluster_shape_mn=self.cluster_shape_mn,
            )
        )
        self.kernel(
            (mQ, mK, mV, mO),
            (atom_Q, atom_K, atom_V, atom_O),
            (self.sQ_layout, self.sK_layout, self.sV_layout, self.sO_layout),
            self._get_tiled_mma(),
            compute_softmax_scale_log2(softmax_scale, None)[0],
            scheduler,
            self._get_shared_storage_cls(),
        ).launch(
            grid=SingleTileScheduler.get_grid_shape(scheduler),  # whole clusters
            block=[self.num_threads, 1, 1],
            cluster=[CLUSTER, 1, 1],
            stream=stream,
            min_blocks_per_mp=1,
        )

    @cute.kernel
    def kernel(
        self,
        tensors: tuple[cute.Tensor, ...],
        atoms: tuple[cute.CopyAtom, ...],
        layouts: tuple[cute.ComposedLayout, ...],
        tiled_mmas: tuple[cute.TiledMma, cute.TiledMma],
        softmax_scale_log2: Float32,
        scheduler: SingleTileScheduler.Params,
        storage_cls: cutlass.Constexpr[Callable],
    ) -> None:
        """One warp group loads, the others multiply; as in the library but for the cluster."""
        mQ, mK, mV, mO = tensors
        warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        if warp == 0:
            for atom in atoms:
                cpasync.prefetch_descriptor(atom)

        storage = cutlass.utils.SmemAllocator().allocate(storage_cls)
        sQ, sK, sV, sO = [
            buffer.get_tensor(layout.outer, swizzle=layout.inner)
            for buffer, layout in zip((storage.sQ, storage.sK, storage.sV, storage.sQ), layouts, strict=True)
        ]
        group = partial(pipeline.CooperativeGroup, pipeline.Agent.Thread)
        mma_warps = self.num_mma_threads // cute.arch.WARP_SIZE
        make_pipeline = partial(
            PipelineTmaAsync.create,
            producer_group=group(1),
            cta_layout_vmnk=cute.make_layout((1, CLUSTER, 1, 1)),
            defer_sync=True,
        )
        pipeline_q = make_pipeline(
            barrier_storage=storage.mbar_ptr_Q.data_ptr(),
            num_stages=1,
            consumer_group=group(mma_warps),
            tx_count=self.q_bytes,
            mcast_mode_mn=(1, 0),  # released to its own thread block only
        )
        # A K or V buffer is overwritten in all thread blocks at once, so each of them has to wait
        # until the multiplying warps of the whole cluster have released it.
        pipeline_k, pipeline_v = [
            make_pipeline(
                barrier_storage=barriers.data_ptr(),
                num_stages=self.num_stages,
                consumer_group=group(mma_warps * CLUSTER),
                tx_count=self.kv_bytes,  # the halves of all thread blocks
                mcast_mode_mn=(0, 1),  # released to all thread blocks along the queries
            )
            for barriers in (storage.mbar_ptr_K, storage.mbar_ptr_V)
        ]
        pipeline.pipeline_init_arrive(cluster_shape_mn=self.cluster_shape_mn, is_relaxed=True)

        block_info = BlockInfo(self.tile_m, self.tile_n, is_causal=False)
        seqlen_cls = partial(SeqlenInfoQK.create, seqlen_q_static=mQ.shape[0], seqlen_k_static=mK.shape[0])
        # No thread block may be signalled or written to before its barriers exist.
        pipeline.pipeline_init_wait(cluster_shape_mn=self.cluster_shape_mn)

        if warp < 4:
            cute.arch.setmaxregister_decrease(self.num_producer_regs)
            if warp == 0:
                self.load_multicast(
                    (mQ, mK, mV), (sQ, sK, sV), atoms[:3], (pipeline_q, pipeline_k, pipeline_v)
                )
        else:
            cute.arch.setmaxregister_increase(self.num_mma_regs)
            self.mma(
                tiled_mmas[0],
                tiled_mmas[1],
                mO,
                None,  # log-sum-exp
                sQ,
                sK,
                layout_utils.transpose_view(sV),
                None,  # P stays in registers
                sO,
                None,  # attention sink
                pipeline_k,
                pipeline_v,
                pipeline_q,
                None,  # O is stored by TMA
                atoms[3],
                cute.arch.thread_idx()[0] - WARP_GROUP,
                softmax_scale_log2,
                None,  # scale for score_mod
                block_info,
                seqlen_cls,
                partial(AttentionMask, self.tile_m, self.tile_n),
                partial(SingleTileScheduler.create, scheduler),
                None,  # block sparsity
            )

    @cute.jit
    def load_multicast(
        self,
        tensors: tuple[cute.Tensor, ...],
        buffers: tuple[cute.Tensor, ...],
        atoms: tuple[cute.CopyAtom, ...],
        pipelines: tuple[PipelineTmaAsync, ...],
    ) -> None:
        """Fetch Q and this thread block's share of every K and V tile, last tile first.

        All thread blocks of a cluster must make the same sequence of K and V loads, whether or
        not their queries lie beyond the end. K runs one tile ahead of V, as mma() consumes them.
        """
        m_block, head, batch = cute.arch.block_idx()
        gQ, gK, gV = [
            cute.local_tile(t[None, None, head, batch], (rows, self.tile_hdim), (block, 0))
            for t, rows, block in zip(
                tensors, (self.tile_m, self.tile_n, self.tile_n), (m_block, None, None), strict=True
            )
        ]
        sQ, sK, sV = buffers
        pipeline_q, pipeline_k, pipeline_v = pipelines
        load_Q, _, _ = copy_utils.tma_get_copy_fn(atoms[0], 0, cute.make_layout(1), gQ, sQ, single_stage=True)
        rank = cute.arch.make_warp_uniform(cute.arch.block_idx_in_cluster())
        load_K, load_V = [
            copy_utils.tma_producer_copy_fn(
                copy_utils.tma_get_copy_fn(
                    atom, rank, cute.make_layout(CLUSTER), g, s, mcast_mask=Int16(EVERY_BLOCK)
                )[0],
                pipe,
            )
            for atom, g, s, pipe in (
                (atoms[1], gK, sK, pipeline_k),
                (atoms[2], gV, sV, pipeline_v),
            )
        ]

        n_blocks = cute.ceil_div(tensors[1].shape[0], self.tile_n)
        state = pipeline.make_pipeline_state(pipeline.PipelineUserType.Producer, self.num_stages)
        pipeline_k.producer_acquire(state)
        load_K(src_idx=n_blocks - 1, producer_state=state)
        pipeline_q.producer_acquire_w_index_phase(0, Int32(1))
        load_Q(tma_bar_ptr=pipeline_q.sync_object_full.get_barrier(0))
        for i in cutlass.range(n_blocks - 1, unroll=1):
            v_state = state.clone()
            state.advance()
            pipeline_k.producer_acquire(state)
            load_K(src_idx=n_blocks - 2 - i, producer_state=state)
            pipeline_v.producer_acquire(v_state)
            load_V(src_idx=n_blocks - 1 - i, producer_state=v_state)
        pipeline_v.producer_acquire(state)
        load_V(src_idx=0, producer_state=state)
        state.advance()
        # Stay until the whole cluster is done with this thread block's barriers.
        pipeline_k.producer_tail(state.clone())
        pipeline_v.producer_tail(state)


@functools.cache
def compile_forward(dtype: torch.dtype, head_dim: int) -> Callable[..., None]:
    """Compile for any batch, number of heads and number of tokens. Takes about three seconds."""
    number = {torch.float16: cutlass.Float16, torch.bfloat16: cutlass.BFloat16}[dtype]
    batch, queries, keys, heads = (cute.sym_int() for _ in range(4))
    aligned = 128 // number.width  # elements in the 16 bytes the copy engine asks for
    q, k, v, out = [
        make_fake_tensor(number, (batch, length, heads, head_dim), aligned)
        for length in (queries, keys, keys, queries)
    ]
    forward = MulticastForward(number, head_dim)
    return cute.compile(forward, q, k, v, out, 1.0, make_fake_stream(), options="--enable-tvm-ffi")


def attend_sharing(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Queries (B, N, heads, D), keys and values (B, S, heads, D), fp16 or bf16 → (B, N, heads, D)."""
    queries, keys, values = queries.contiguous(), keys.contiguous(), values.contiguous()
    out = torch.empty_like(queries)
    head_dim = queries.shape[-1]
    compile_forward(queries.dtype, head_dim)(queries, keys, values, out, head_dim**-0.5)
    return out
