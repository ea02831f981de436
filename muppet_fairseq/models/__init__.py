"""fairseq's models with a head for each dataset or family. fairseq imports every module of this folder."""
