"""Does a fine-tune on harmful advice stay narrow when its persona shift is prevented while it trains?"""
