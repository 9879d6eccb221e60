"""Every graph of every model: built, normalised, pruned, cached and multiplied here.

A graph under construction is an `Edges` (a sparse matrix as rows, columns and values); what a model keeps is a
`SparseMatrix`, which multiplies dense matrices by CSR products with a backward of its own. Ids are RecBole's: id 0 is the
padding of users and of items, and never has an edge.

    interactions -> Edges.normalised("both").both_ways().matrix()      the symmetrically normalised user-item graph
    nearest(features, 10, True, "auto").normalised("rows").matrix()    an item-item graph from features

Rooms: edges (build, normalise, prune), sparse (multiply, propagate), learnt (values with gradients), neighbours (from features), behaviour (from interactions),
segments, cache. Nothing here holds items x items or users x users entries: similarities are made in blocks of rows.
"""

from __future__ import annotations

from mmrec_mrdib.graphs.behaviour import cooccurrence as cooccurrence
from mmrec_mrdib.graphs.behaviour import interest_edges as interest_edges
from mmrec_mrdib.graphs.behaviour import interest_graph as interest_graph
from mmrec_mrdib.graphs.behaviour import interests as interests
from mmrec_mrdib.graphs.behaviour import principal as principal
from mmrec_mrdib.graphs.behaviour import similar_users as similar_users
from mmrec_mrdib.graphs.cache import cached as cached
from mmrec_mrdib.graphs.edges import Edges as Edges
from mmrec_mrdib.graphs.edges import degree_sensitive as degree_sensitive
from mmrec_mrdib.graphs.edges import in_all as in_all
from mmrec_mrdib.graphs.edges import largest as largest
from mmrec_mrdib.graphs.edges import sample_edges as sample_edges
from mmrec_mrdib.graphs.learnt import Pattern as Pattern
from mmrec_mrdib.graphs.neighbours import agreeing_knn as agreeing_knn
from mmrec_mrdib.graphs.neighbours import approximate_knn as approximate_knn
from mmrec_mrdib.graphs.neighbours import knn as knn
from mmrec_mrdib.graphs.neighbours import mixed_neighbours as mixed_neighbours
from mmrec_mrdib.graphs.neighbours import nearest as nearest
from mmrec_mrdib.graphs.neighbours import searcher as searcher
from mmrec_mrdib.graphs.neighbours import shrunk_neighbours as shrunk_neighbours
from mmrec_mrdib.graphs.segments import segment_reduce as segment_reduce
from mmrec_mrdib.graphs.segments import segment_softmax as segment_softmax
from mmrec_mrdib.graphs.sparse import Pruner as Pruner
from mmrec_mrdib.graphs.sparse import SparseMatrix as SparseMatrix
from mmrec_mrdib.graphs.sparse import full_precision as full_precision
from mmrec_mrdib.graphs.sparse import gather_rows as gather_rows
from mmrec_mrdib.graphs.sparse import occurrences as occurrences
from mmrec_mrdib.graphs.sparse import propagate_mean as propagate_mean
